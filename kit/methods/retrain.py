"""Retraining from scratch on the retain set under a budget: the gold standard as far as the time allows.

Every weight is drawn anew from the seed; SGD with one cycle of the learning rate (up over the first fifth of the steps,
then linearly to 0) that ends with the planned steps, however few. Epochs and learning rate are a usual choice for
small residual networks on 32x32 images, not the competition's 30 epochs of Adam.

Hyper-parameters:
  epochs: passes over the retain set
  lr: learning rate, at its highest
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from kit.methods.shared.schedules import one_cycle
from kit.methods.shared.surgery import reset_parameters
from kit.plan import Plan, planned_steps
from kit.training import fine_tune

RANGES = {"epochs": (2.0, 8.0), "lr": (1e-2, 5e-1)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    epochs: float = 6.0,
    lr: float = 0.1,
    **recovery: Any,
) -> nn.Module:
    """Forget everything and train for `epochs` epochs, the largest learning rate being `lr`."""
    torch.manual_seed(seed)
    n_steps = planned_steps(plan, epochs * len(retain_loader))
    reset_parameters(net)
    return fine_tune(net, retain_loader, n_steps, lr=lr, schedule=one_cycle(warm_up=0.2), **recovery)
