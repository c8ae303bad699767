"""Influence unlearning (IU): the step that taking the forget set's weight away has to first order, at once.

w = w* + alpha k / n F^-1 (mean of grad l over D_f - mean of grad l over D_r): what the optimum moves by, to first
order, when the weights 1 / n of n examples become 0 for the k forgotten and 1 / (n - k) for the others; F stands for
the Hessian, F = damping I + (1/m) sum_j g_j g_j^T over m gradients of the retain set. Source: Koh and Liang 2017,
"Understanding Black-box Predictions via Influence Functions"; as a method for networks Jia et al. 2023, "Model Sparsity
Can Simplify Machine Unlearning". F^-1 is exact (`kit.fisher.streamed`): the recursion of several public implementations
only rescales the first gradient. The numbers are starting points of ours.

Hyper-parameters:
  alpha: times the step to first order
  damping: what is added to the diagonal of F
  n_gradients: gradients that F is made of
  size: images that each of them is the mean over
  epochs: passes over the retain set in the fine-tuning at the end
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from kit.fisher.diagonal import gradient_sum, inputs
from kit.fisher.streamed import streamed_inverse_product
from kit.methods.shared.surgery import check_at_least
from kit.plan import Plan, planned_phases
from kit.training import cycle, fine_tune

RANGES = {"alpha": (0.1, 30.0), "damping": (1e-2, 10.0), "epochs": (0.0, 1.0)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    alpha: float = 1.0,
    damping: float = 1.0,
    n_gradients: int = 500,
    size: int = 1,
    epochs: float = 0.0,
    **recovery: Any,
) -> nn.Module:
    """Take the step, then fine-tune for `epochs`, by default not at all.

    F is over `n_gradients` gradients (fewer where the set is used up), each the mean over `size` examples of the
    retain set drawn anew by each seed; the same examples give the mean over D_r. A planned step is an optimiser step or
    a batch sent through the net for a gradient; F's examples go through it twice, and once more for their mean.
    damping: the default leaves a ResNet-18 trained with weight decay whole, a tenth of it breaks it; convex problems
    take far less.
    """
    check_at_least(1, size=size)
    torch.manual_seed(seed)
    n_retain, k = len(retain_loader.dataset), len(forget_loader.dataset)
    n_gradients = max(1, min(n_gradients, n_retain // size))
    n_wanted = 3 * n_gradients * size * len(retain_loader) / n_retain
    n_fisher, n_forget, n_repair = planned_phases(
        plan, n_wanted, len(forget_loader), epochs * len(retain_loader), least=(1, 1)
    )
    n_gradients = max(1, int(n_gradients * min(1.0, n_fisher / n_wanted)))
    images, labels = _drawn(net, retain_loader, n_gradients * size)
    forget = _mean_gradient(net, inputs(net, islice(cycle(forget_loader), min(n_forget, len(forget_loader)))))
    retain = _mean_gradient(net, zip(images.split(64), labels.split(64), strict=True))
    vectors = {name: (forget[name] - retain[name])[None] for name in forget}
    step = streamed_inverse_product(net, images, labels, vectors, damping, size=size)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name in step:
                parameter += alpha * k / (n_retain + k) * step[name][0]
    return fine_tune(net, retain_loader, n_repair, **recovery)


def _drawn(net: nn.Module, loader: Iterable, n: int) -> tuple[Tensor, Tensor]:
    """n images and labels of a loader."""
    images, labels, batches = [], [], inputs(net, cycle(loader))
    while n > 0:
        some, theirs = next(batches)
        images.append(some[:n])
        labels.append(theirs[:n])
        n -= len(labels[-1])
    return torch.cat(images), torch.cat(labels)


def _mean_gradient(net: nn.Module, batches: Iterable) -> dict[str, Tensor]:
    """In evaluation mode, for each parameter that requires one, by name."""
    batches = list(batches)
    n = sum(len(labels) for _, labels in batches)
    return {name: total / n for name, total in gradient_sum(net, batches).items()}
