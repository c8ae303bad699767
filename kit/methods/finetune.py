"""Fine-tuning: continue training on the retain set and let the forget set fade.

Minimises L(w) = mean CE(f_w(x), y) over the retain set. Source: the competition's starter notebook (1 epoch, SGD,
learning rate 0.001, batch 64); the Sunshine report on the competition, version 1 (learning rate 0.002, 15 epochs);
Castaldo et al. 2023, "Machine Unlearning", section 2 (learning rate 1e-5, weight decay 0.01). On Kaggle one epoch
scored 0.046 to 0.058 and four scored 0.009.

Hyper-parameters:
  epochs: passes over the retain set
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from kit.plan import Plan, planned_steps
from kit.training import fine_tune

RANGES = {"epochs": (1.0, 5.0), "lr": (1e-4, 0.5)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    epochs: float = 1.0,
    **recovery: Any,
) -> nn.Module:
    """Minimise the cross-entropy of the retain set for `epochs` epochs of SGD, learning rate `lr` along a cosine."""
    torch.manual_seed(seed)
    n_steps = planned_steps(plan, epochs * len(retain_loader))
    return fine_tune(net, retain_loader, n_steps, **recovery)
