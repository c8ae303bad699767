"""SCRUB: a student that disobeys its teacher, the original, on the forget set and obeys it on the retain set.

Epochs of minimising gamma CE + alpha KL(p* || p_w) over the retain set, p* the original's output; before each of the
first ones an epoch of maximising KL(p* || p_w) over the forget set. Source: Kurmanji, Triantafillou, Hayes and
Triantafillou 2023, "Towards Unbounded Machine Unlearning", algorithm 1 (temperature 4, KL times its square; 2 to 3
maximising epochs). The other numbers here are starting points of ours.

Hyper-parameters:
  alpha: weight of KL in the minimising epochs
  gamma: weight of CE in the minimising epochs
  temperature: divides the logits of teacher and student
  max_epochs: maximising epochs, passes over the forget set
  max_lr: learning rate of those
  epochs: minimising epochs, passes over the retain set
  lr: learning rate of those, at its highest
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.methods.shared.schedules import constant, cosine_per_epoch
from kit.methods.shared.teaching import frozen_copy, kl_divergence
from kit.plan import Plan, planned_phases
from kit.training import fine_tune

RANGES = {"alpha": (0.1, 1.0), "gamma": (0.1, 1.0), "max_lr": (5e-5, 5e-3), "lr": (5e-5, 5e-3)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    alpha: float = 0.5,
    gamma: float = 1.0,
    temperature: float = 4.0,
    max_epochs: int = 2,
    max_lr: float = 5e-4,
    epochs: int = 5,
    lr: float = 5e-4,
    **recovery: Any,
) -> nn.Module:
    """`epochs` minimising epochs, their rate `lr` falling along a cosine once an epoch, before the first
    `max_epochs` of them a maximising one at `max_lr`. Each epoch of either kind has an SGD of its own, so that no
    momentum goes from one to the next."""
    torch.manual_seed(seed)
    teacher, falling = frozen_copy(net), cosine_per_epoch(epochs)
    wanted = [(len(forget_loader) * (epoch < max_epochs), len(retain_loader)) for epoch in range(epochs)]
    steps = iter(planned_phases(plan, *(n for both in wanted for n in both)))

    def distance(student: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = student(images).float()
        with torch.no_grad():
            target = teacher(images)
        return logits, temperature**2 * kl_divergence(target, logits, temperature)

    def disobey(student: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return -distance(student, images)[1]

    def obey(student: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        logits, divergence = distance(student, images)
        return gamma * F.cross_entropy(logits, labels) + alpha * divergence

    for epoch in range(epochs):
        fine_tune(net, forget_loader, next(steps), lr=max_lr, schedule=constant, objective=disobey, **recovery)
        rate = lr * falling(epoch / epochs)
        fine_tune(net, retain_loader, next(steps), lr=rate, schedule=constant, objective=obey, **recovery)
    return net
