"""Class-activation maps: which pixels speak for the label, in the original, an unlearned and a retrained model.

Pools hold logits, not weights, so that checkpoint 0 of a method and retrained model 0 are made again from their seeds
where that is cheap.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.budget import format_duration
from kit.checkpoint import unlearn_once
from kit.device import device_of, reproducible
from kit.errors import InputError
from kit.methods import get_method
from kit.plan import Plan
from kit.seeds import checkpoint_seed
from local_eval.archived import checkpoint_of
from local_eval.checkpoints import Checkpoint, load_checkpoint
from local_eval.devices import hidden_cuda
from local_eval.pool import ModelPool
from local_eval.recipes import GIVEN
from local_eval.retrained import retrained_pool, train_model
from local_eval.setting import Workspace, as_dataset
from local_eval.unlearned import loaders_for, method_options

AFFORDABLE_S = 120.0  # for all the models that have to be made again


@dataclass(frozen=True)
class Maps:
    """One model's maps, float32 (n_images, height, width) in 0..1, and its probability of each label (n_images,)."""

    maps: np.ndarray
    probability: np.ndarray


def class_activation(net: nn.Module, images: Tensor, labels: Tensor) -> Maps:
    """Where the evidence for each label lies: relu(sum over channels of activation * positive gradient), at most 1.

    images: float32 (n, C, H, W) of values 0..255; labels (n,). Taken at the input of the last convolution whose map has
    at least a quarter of the image's side: deeper maps of such small images have no places left. InputError where
    the net has no convolution. Source: Jiang et al. 2021, LayerCAM, equations 3 to 5.
    """
    net.eval()
    images, labels = images.to(device_of(net)), labels.to(device_of(net))
    layer = _layer(net, images)
    kept: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        kept.append(inputs[0].detach().requires_grad_())
        return (kept[-1], *inputs[1:])

    handle = layer.register_forward_pre_hook(keep)
    try:
        with torch.enable_grad():
            logits = net(images).float()
            (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), kept[-1])
    finally:
        handle.remove()
    activation = F.relu((F.relu(gradient) * kept[-1].detach()).sum(1, keepdim=True))
    maps = F.interpolate(activation.float(), images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    maps = maps / maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    probability = logits.detach().softmax(1).gather(1, labels[:, None])[:, 0]
    return Maps(maps.cpu().numpy(), probability.cpu().numpy())


def _layer(net: nn.Module, images: Tensor) -> nn.Module:
    found: list[nn.Module] = []
    side = images.shape[-1]

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if 4 * inputs[0].shape[-1] >= side and module not in found:
            found.append(module)

    handles = [m.register_forward_pre_hook(note) for m in net.modules() if isinstance(m, nn.Conv2d)]
    try:
        with torch.no_grad():
            net(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise InputError("class-activation maps need a net with convolutions")
    return found[-1]


@dataclass(frozen=True)
class Nets:
    """Models by what they are, and a sentence for each that could not be had."""

    nets: dict[str, nn.Module]
    missing: tuple[str, ...]


def nets_of(
    workspace: Workspace,
    pool: ModelPool,
    seconds: float,
    retraining_s: float,
    *,
    archive: Path | None = None,
    retrained: nn.Module | None = None,
    device: str = "cpu",
) -> Nets:
    """The original model, checkpoint 0 of a pool and retrained model 0.

    seconds, retraining_s: what one model of each took when the pools were made. A model is left out, with a sentence,
    where making it again would take too long or cannot be done. archive: the checkpoints of the pool, where it came
    from one; retrained: that model, where the caller has it already; device: where the pools were made.
    """
    nets: dict[str, nn.Module] = {}
    missing = []
    if workspace.original_path.exists():
        nets["original"] = workspace.original()
    else:
        missing.append("The original model is left out: it was not given.")
    left_s = AFFORDABLE_S
    for name, needed_s, make in (
        ("unlearned", 0.0 if archive else seconds, lambda: _unlearned(workspace, pool, archive, device)),
        ("retrained", 0.0 if retrained else retraining_s, lambda: retrained or _retrained(workspace, device)),
    ):
        net, sentence = _affordable(name, needed_s, left_s, make)
        if net is None:
            missing.append(sentence)
        else:
            nets[name] = net
            left_s -= needed_s
    return Nets(nets, tuple(missing))


def _affordable(
    name: str, needed_s: float, left_s: float, make: Callable[[], nn.Module]
) -> tuple[nn.Module | None, str]:
    if needed_s > left_s:
        return None, (
            f"The {name} model is left out: pools keep logits, and to make it again takes "
            f"{format_duration(needed_s)} here."
        )
    try:
        with reproducible():
            return make().eval(), ""
    except InputError as error:
        return None, f"The {name} model is left out: {error}."


def _unlearned(workspace: Workspace, pool: ModelPool, archive: Path | None, device: str) -> nn.Module:
    if archive is not None:
        return checkpoint_of(archive, 0, workspace.net())
    if pool.identity.keys() & {"archive", "checkpoints"}:
        raise InputError("its weights are in the files it came from: give those to this command")
    name, (spec, settings) = pool.identity["method"], method_options(pool)
    if not spec:
        raise InputError(f"{name} is a function of a notebook or script, which a report cannot run again")
    with hidden_cuda(device):
        method = get_method(spec, settings)
    if method.identity["source"] != pool.identity["source"]:
        raise InputError(f"{name} was changed since")
    loaders = loaders_for(workspace, method, device)
    plan, model = Plan(pool.facts(0).get("steps")), workspace.original().to(device)
    with hidden_cuda(device):
        return unlearn_once(method, model, loaders, seed=pool.identity["seed"], index=0, plan=plan)[0]


def _retrained(workspace: Workspace, device: str) -> nn.Module:
    if workspace.setting.recipe.startswith(GIVEN):
        facts = retrained_pool(workspace).facts(0)
        return load_checkpoint(Checkpoint(Path(facts["path"]), facts["member"]), workspace.net())
    retain = as_dataset(workspace.splits.retain).to(device)
    seed = checkpoint_seed(workspace.setting.train_seed, 0)
    return train_model(workspace, retain, seed, workspace.class_counts())
