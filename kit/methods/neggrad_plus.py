"""NegGrad+: descend the loss of the retain set and ascend that of the forget set in every step.

Minimises alpha CE(retain batch) - (1 - alpha) CE(forget batch). Source: Kurmanji, Triantafillou, Hayes and
Triantafillou 2023, "Towards Unbounded Machine Unlearning" (the baseline there; alpha 0.95, learning rate 0.01).

Hyper-parameters:
  alpha: weight of the retain set's loss; the forget set's has 1 - alpha
  epochs: passes over the retain set
  lr: learning rate, at its highest
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kit.plan import Plan, planned_steps
from kit.training import cross_entropy, cycle, fine_tune, unpack

RANGES = {"alpha": (0.8, 0.999), "epochs": (1.0, 5.0), "lr": (1e-4, 1e-1)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    alpha: float = 0.95,
    epochs: float = 5.0,
    lr: float = 0.01,
    **recovery: Any,
) -> nn.Module:
    """Train for `epochs` epochs of the retain set, each of its batches beside one of the forget set."""
    torch.manual_seed(seed)
    n_steps = planned_steps(plan, epochs * len(retain_loader))
    batches = cycle(forget_loader, net)

    def both(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        forget, theirs = unpack(next(batches), images.device)
        kept = cross_entropy(model, images, labels)
        return alpha * kept - (1 - alpha) * cross_entropy(model, forget, theirs)

    return fine_tune(net, retain_loader, n_steps, lr=lr, objective=both, **recovery)
