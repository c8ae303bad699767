"""Single-step sample erasure (SSSE): one Newton step away from the forget set, with the inverse of the Fisher matrix.

w = w* + eps / (n - k) F^-1 sum over the forget set of grad l_i(w*), F = damping I + (1/m) sum_j g_j g_j^T over m
gradients of the whole training set; n its size, k the forget set's. Source: Peste, Alistarh and Lampert 2021, "SSSE:
Efficiently Erasing Samples from Trained Machine Learning Models", eqs. 2 to 4 (damping 1e-4 in the convex case; for
networks blocks of 70,000 parameters and gradients of mini-batches of 10; eps found by the similarity ratio). An eps of
1 is right in the convex case; networks take about a hundredth of it and less, and are destroyed by 1. The paper's
recursion for F^-1 is replaced by `kit.fisher.streamed`, which gives the same step.

Hyper-parameters:
  eps: times the step
  damping: what is added to the diagonal of F
  n_gradients: gradients that F is made of
  size: images that each of them is the mean over
  block: parameters of a diagonal block of F, 0 for all in one
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

RANGES = {"eps": (1e-4, 1.0), "damping": (1e-5, 1e-1), "epochs": (0.0, 2.0)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    eps: float = 0.005,
    damping: float = 1e-4,
    n_gradients: int = 500,
    size: int = 10,
    block: int = 0,
    epochs: float = 0.0,
    **recovery: Any,
) -> nn.Module:
    """Take the step with F over `n_gradients` gradients (fewer where the set is used up), each the mean over `size`
    examples, drawn anew by each seed; then fine-tune for `epochs`, by default not at all.

    block: diagonal blocks of so many parameters (70000 in the paper), 0 for all in one. A planned step is an optimiser
    step or a batch sent through the net for a gradient; F's examples go through it twice.
    """
    check_at_least(1, size=size)
    torch.manual_seed(seed)
    n, k = len(retain_loader.dataset) + len(forget_loader.dataset), len(forget_loader.dataset)
    n_gradients = max(1, min(n_gradients, n // size))
    n_wanted = 2 * n_gradients * size * (len(retain_loader) + len(forget_loader)) / n
    n_fisher, n_forget, n_repair = planned_phases(
        plan, n_wanted, len(forget_loader), epochs * len(retain_loader), least=(1, 1)
    )
    n_gradients = max(1, int(n_gradients * min(1.0, n_fisher / n_wanted)))
    images, labels = _drawn(net, retain_loader, forget_loader, n_gradients * size)
    # One pass at most: more add nothing, and the list is held in memory.
    batches = list(inputs(net, islice(cycle(forget_loader), min(n_forget, len(forget_loader)))))
    share = k / sum(len(labels) for _, labels in batches)
    vectors = {name: share * total[None] for name, total in gradient_sum(net, batches).items()}
    step = streamed_inverse_product(net, images, labels, vectors, damping, size=size, block=block or None)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name in step:
                parameter += eps / (n - k) * step[name][0]
    return fine_tune(net, retain_loader, n_repair, **recovery)


def _drawn(net: nn.Module, retain_loader: Iterable, forget_loader: Iterable, n: int) -> tuple[Tensor, Tensor]:
    """n images and labels of retain and forget set, from each in proportion to its size, in random order."""
    k = len(forget_loader.dataset)
    n_forget = round(n * k / (k + len(retain_loader.dataset)))
    images, labels = [], []
    for loader, count in ((retain_loader, n - n_forget), (forget_loader, n_forget)):
        batches = inputs(net, cycle(loader))
        while count > 0:
            some, theirs = next(batches)
            images.append(some[:count])
            labels.append(theirs[:count])
            count -= len(images[-1])
    order = torch.randperm(n)
    return torch.cat(images)[order], torch.cat(labels)[order]
