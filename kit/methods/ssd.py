"""Selective synaptic dampening (SSD): shrink the parameters that the forget set needs far more than the whole set does.

theta_j *= min(lambda F_D,j / F_f,j, 1) wherever F_f,j > alpha F_D,j, F_f and F_D the diagonals of the empirical Fisher
information on the forget set and on the training set D. Source: Foster, Schoepf and Brintrup 2024, "Fast machine
unlearning without retraining through selective synaptic dampening", eqs. 6 and 7 (alpha 10, lambda 1); Castaldo et al.
2023, "Machine Unlearning", section 6 (the retain set in place of D; alpha 10 for a class, 0.5 for a random subset).
An alpha below lambda acts as lambda: what it selects further has a factor of 1.

Hyper-parameters:
  alpha: a parameter is dampened where F_f is above alpha F_D: the smaller, the more are
  dampening: lambda: how far they are left
  whole_set: compare with the importance on both sets, not on the retain set
  per_sample: squares of each example's gradient, else of the batch means
  fisher_epochs: passes over the retain set for its importance, a share below 1
  epochs: passes over the retain set in the fine-tuning at the end
"""

import warnings
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn

from kit.fisher.diagonal import Named, diagonal, squared_batch_means
from kit.plan import Plan, planned_phases
from kit.training import cycle, fine_tune

RANGES = {"alpha": (0.5, 50.0), "dampening": (0.1, 1.0), "epochs": (0.0, 2.0)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    alpha: float = 1.0,
    dampening: float = 1.0,
    whole_set: bool = False,
    per_sample: bool = True,
    fisher_epochs: float = 0.1,
    epochs: float = 0.0,
    **recovery: Any,
) -> nn.Module:
    """Dampen with lambda = `dampening`, then fine-tune for `epochs`, by default not at all.

    The method itself draws nothing: each seed takes the retain set's importance on its own `fisher_epochs` of it, so
    that checkpoints differ. It is compared with the retain set; whole_set: with D, put together from both parts by
    their sizes, which cannot select a parameter where the forget set is more than 1 / alpha of D. per_sample: squares
    of single gradients; False takes the squared batch means of the source's code. Warns where no parameter is
    dampened. A planned step is an optimiser step or a batch of importance.
    """
    torch.manual_seed(seed)
    n_forget, n_retain, n_repair = planned_phases(
        plan, len(forget_loader), fisher_epochs * len(retain_loader), epochs * len(retain_loader), least=(1, 1)
    )
    importance = diagonal if per_sample else squared_batch_means
    forget = importance(net, islice(cycle(forget_loader), n_forget))
    other = importance(net, islice(cycle(retain_loader), n_retain))
    if whole_set:
        n_examples = len(retain_loader.dataset) + len(forget_loader.dataset)
        share = len(forget_loader.dataset) / n_examples
        other = {name: (1 - share) * other[name] + share * forget[name] for name in forget}
    if not _dampen(net, forget, other, alpha, dampening):
        hint = f"; with whole_set it has to be below {1 / share:.3g} here" if whole_set else ""
        warnings.warn(f"ssd: alpha {alpha:g} dampens no parameter: lower it{hint}", stacklevel=2)
    return fine_tune(net, retain_loader, n_repair, **recovery)


@torch.no_grad()
def _dampen(net: nn.Module, forget: Named, other: Named, alpha: float, dampening: float) -> int:
    """How many parameters were made smaller."""
    n_dampened = 0
    for name, parameter in net.named_parameters():
        if name in forget:
            selected = forget[name] > alpha * other[name]
            factor = torch.where(selected, (dampening * other[name] / forget[name]).clamp(max=1), 1.0)
            parameter.mul_(factor)
            n_dampened += int((factor < 1).sum())
    return n_dampened
