"""Random perturbation: noise on every parameter, then fine-tuning on the retain set. Needs no forget set.

Impair: w <- w + N(0, (beta * sigma)^2) for every parameter, sigma the standard deviation of its layer's weights; here
each tensor is a layer of its own, so that a bias is perturbed by the spread of the biases. Recover: fine-tuning.
Source: Castaldo et al. 2023, "Machine Unlearning", section 3 (beta 0.7, 1 to 5 epochs, learning rate 1e-5, weight
decay 0.01). On Kaggle it scored 0.0152.

Hyper-parameters:
  beta: the noise's standard deviation, in those of the parameter's tensor
  epochs: passes over the retain set in the fine-tuning at the end
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from kit.methods.shared.surgery import add_noise
from kit.plan import Plan, planned_steps
from kit.training import fine_tune

RANGES = {"beta": (0.05, 1.0), "epochs": (1.0, 4.0), "lr": (1e-4, 1e-1)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    beta: float = 0.7,
    epochs: float = 1.0,
    **recovery: Any,
) -> nn.Module:
    """Add N(0, (beta * sigma)^2) to each parameter, sigma the standard deviation of its tensor; then recover."""
    torch.manual_seed(seed)
    n_steps = planned_steps(plan, epochs * len(retain_loader))
    add_noise(net, beta)
    return fine_tune(net, retain_loader, n_steps, **recovery)
