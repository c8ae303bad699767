"""Training recipes: how an original or a retrained model comes about from its training set."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.competition import ExampleDataset, TensorLoader
from kit.errors import InputError
from kit.methods.shared.schedules import one_cycle
from kit.tools.own import call_own, is_file_spec, own_function, read_spec
from kit.training import Objective, cosine, cross_entropy, device_of, fused, train, unpack
from local_eval.inference import native_bfloat16
from local_eval.models import check_name
from local_eval.muon import Muon

GIVEN = "checkpoints:"  # begins the recipe of models that came as files, before what names those
_LOSSES_AT_ONCE = 50  # that wait on a GPU until they are looked at, which halts it


@dataclass(frozen=True)
class Recipe:
    """A training recipe. fit: (net, training set, epochs, class counts of the whole training set) -> trained net."""

    name: str
    epochs: float
    fit: Callable[[nn.Module, ExampleDataset, float, Tensor], nn.Module]


def fit_competition(
    net: nn.Module,
    dataset: ExampleDataset,
    epochs: float,
    class_counts: Tensor,
    *,
    weighted: bool = True,
    lr: float = 1e-4,
    weight_decay: float = 5e-3,
    batch_size: int = 64,
) -> nn.Module:
    """The competition's recipe: Adam, learning rate 1e-4, weight decay 5e-3, batch 64, cosine, cross-entropy
    weighted by 1 / class count (unless told otherwise)."""
    weights = (1.0 / class_counts.clamp(min=1)).to(next(net.parameters()).device) if weighted else None
    loader = TensorLoader(dataset, batch_size=batch_size, shuffle=True)

    def objective(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images).float(), labels, weight=weights)

    optimizer = fused(torch.optim.Adam, net.parameters(), lr, weight_decay=weight_decay)
    objective = finite("competition", lr, optimizer, objective)
    return train(net, loader, math.ceil(epochs * len(loader)), optimizer, schedule=cosine, objective=objective)


def fit_fast(
    net: nn.Module,
    dataset: ExampleDataset,
    epochs: float,
    class_counts: Tensor,
    *,
    lr: float = 0.15,
    batch_size: int | None = None,
) -> nn.Module:
    """Made for one CPU core: Muon, one cycle, batch 128 (an eighth of a small set), the first third of the steps at
    half the resolution, and bfloat16 where the CPU has it. lr: that of the convolutions; all other parameters have the
    same share of theirs.

    On 20,000 CIFAR-10 images smallconv gains 3.5 points of test accuracy from Muon at equal epochs, and loses less
    than one to the low resolution, which costs a quarter of the time.
    """
    batch_size = batch_size or min(128, max(16, len(dataset) // 8))
    loader = TensorLoader(dataset, batch_size=batch_size, shuffle=True)
    n_steps = math.ceil(epochs * len(loader))
    n_low = n_steps // 3 if min(dataset.images.shape[-2:]) >= 32 else 0  # smaller ones have no pixel to spare
    batches = _half_resolution_first(loader, n_low if _takes_half(net, dataset) else 0)
    optimizer, precision = Muon(net, lr, sgd_lr=lr / 0.3), native_bfloat16(device_of(net))
    options = {"objective": finite("fast", lr, optimizer), "autocast_dtype": precision}
    return train(net, batches, n_steps, optimizer, schedule=one_cycle(warm_up=0.1), **options)


def fit_sgd(
    net: nn.Module,
    dataset: ExampleDataset,
    epochs: float,
    class_counts: Tensor,
    *,
    lr: float = 0.1,
    batch_size: int = 64,
) -> nn.Module:
    """The plain recipe of the residual-network papers: SGD with Nesterov momentum, learning rate 0.1, one cycle."""
    loader = TensorLoader(dataset, batch_size=batch_size, shuffle=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    options = {"schedule": one_cycle(warm_up=0.2), "objective": finite("sgd", lr, optimizer)}
    return train(net, loader, math.ceil(epochs * len(loader)), optimizer, **options)


def finite(recipe: str, lr: float, optimizer: torch.optim.Optimizer, objective: Objective = cross_entropy) -> Objective:
    """The objective, stopped by InputError at the first loss that is no finite number. lr: the recipe's highest.

    On a GPU losses are looked at in batches, as each look waits for it; the step that is told is exact.
    """
    waiting: list[tuple[int, float, Tensor]] = []
    n_steps = 0

    def watched(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        nonlocal n_steps
        loss = objective(net, images, labels)
        n_steps += 1
        waiting.append((n_steps, optimizer.param_groups[-1]["lr"], loss.detach()))
        if len(waiting) == (1 if loss.device.type == "cpu" else _LOSSES_AT_ONCE):
            broken = ~torch.isfinite(torch.stack([loss for *_, loss in waiting])).cpu()
            if broken.any():
                step, now, _ = waiting[int(broken.int().argmax())]
                raise InputError(
                    f"recipe {recipe}: the loss is no finite number at step {step} (learning rate {now:.3g} there): "
                    f"this net does not train so: take a lower rate, as --lr {lr / 10:.1g}, or another --recipe"
                )
            waiting.clear()
        return loss

    return watched


@torch.no_grad()
def _takes_half(net: nn.Module, dataset: ExampleDataset) -> bool:
    """Does the net take images of half the size? One with an embedding of each place, as a transformer, does not."""
    images = F.avg_pool2d(dataset.images[:2].to(torch.float32), 2)
    try:
        net.eval()(images)
    except Exception:  # whatever a net raises that is given another image than it takes
        return False
    return True


def _half_resolution_first(loader: TensorLoader, n_low: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of `loader`, the first `n_low` with images averaged over 2x2 pixels."""
    step = 0
    while True:
        for batch in loader:
            images, labels = unpack(batch, loader.dataset.images.device)
            yield (F.avg_pool2d(images, 2) if step < n_low else images), labels
            step += 1


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("competition", 30, fit_competition),
        Recipe("competition-unweighted", 30, partial(fit_competition, weighted=False)),  # what the weights are worth
        # For a quarter of the width, both four times as large: its gradients are larger beside its weights by the ratio
        # of the widths, so that these would hardly shrink, and half as many steps have to go as far.
        Recipe("competition-narrow", 30, partial(fit_competition, lr=4e-4, weight_decay=0.02)),
        Recipe("fast", 3, fit_fast),
        Recipe("sgd", 6, fit_sgd),
    )
}


def get_recipe(name: str, lr: float | None = None, batch_size: int | None = None) -> Recipe:
    """The recipe of a name, of a user's `file.py:function`, or that of models which came as files (it trains none).

    lr, batch_size: in place of the recipe's own, where given. A user's function is called as
    `fit(net, dataset, epochs, class_counts)` of `Recipe`, without what it has no parameter for after the second, with
    `lr` and `batch_size` where they are given, and returns the net or nothing. Its default of `epochs` is the recipe's.
    """
    if name.startswith(GIVEN):
        return Recipe(name, 0, _train_none)
    check_name("recipe", name, RECIPES)
    options = {key: value for key, value in (("lr", lr), ("batch_size", batch_size)) if value is not None}
    if is_file_spec(name):
        return _own_recipe(name, options)
    recipe = RECIPES[name]
    return replace(recipe, fit=partial(recipe.fit, **options)) if options else recipe


def _train_none(net: nn.Module, dataset: ExampleDataset, epochs: float, class_counts: Tensor) -> nn.Module:
    raise InputError(
        "the models of this setting came as files, so that none can be trained here: give more retrained models with "
        "--retrained, and the original with --original"
    )


def _own_recipe(name: str, options: Mapping[str, Any]) -> Recipe:
    spec = read_spec(name, "--recipe")
    function = own_function(spec, "--recipe")
    parameters = inspect.signature(function).parameters
    epochs = parameters["epochs"].default if "epochs" in parameters else inspect.Parameter.empty
    given = [key for key in ("epochs", "class_counts") if key in parameters]
    further = [p.name for p in list(parameters.values())[2:] if p.name not in given and p.default is p.empty]
    if len(parameters) < 2 or further:
        found = ", ".join(parameters) or "nothing"
        raise InputError(f"--recipe {name}: takes {found}: expected (net, dataset, epochs, class_counts)")

    if unknown := [key for key in options if key not in parameters]:
        option = unknown[0].replace("_", "-")
        raise InputError(f"--{option}: {name} has no parameter {unknown[0]}: give it one, or leave out --{option}")

    def fit(net: nn.Module, dataset: ExampleDataset, epochs: float, class_counts: Tensor) -> nn.Module:
        values = {"epochs": epochs, "class_counts": class_counts}
        trained = call_own(spec, "--recipe", function, net, dataset, **{key: values[key] for key in given}, **options)
        return trained if isinstance(trained, nn.Module) else net

    return Recipe(name, epochs if isinstance(epochs, int | float) else math.nan, fit)
