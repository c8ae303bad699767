"""EU-k (exact unlearning of the last k layers): draw the end of the net anew and train only it on the retain set.

The parameters from the k-th last convolution or linear layer on are drawn anew and minimise CE over the retain set; all
before it are held, so that they keep what they know of the forget set. BatchNorm's statistics move everywhere. Source:
Goel, Prabhu, Sanyal, Lim, Torr and Kumaraguru 2022, "Towards Adversarial Evaluations for Inexact Machine Unlearning".
The numbers are starting points of ours.

Hyper-parameters:
  k: layers that are drawn anew and trained, counted from the end
  epochs: passes over the retain set
  lr: learning rate, at its highest
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from kit.methods.shared.schedules import one_cycle
from kit.methods.shared.surgery import names_of_last, one_image, reset_parameters, training_only
from kit.plan import Plan, planned_steps
from kit.training import fine_tune

RANGES = {"k": (1, 20), "epochs": (1.0, 5.0), "lr": (5e-3, 5e-1)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    k: int = 5,
    epochs: float = 5.0,
    lr: float = 0.05,
    **recovery: Any,
) -> nn.Module:
    """Draw the last `k` layers anew, all where there are fewer, and train them for `epochs` epochs, the largest
    learning rate being `lr`."""
    torch.manual_seed(seed)
    n_steps = planned_steps(plan, epochs * len(retain_loader))
    names = names_of_last(net, k, one_image(net, retain_loader))
    reset_parameters(net, names)
    with training_only(net, names):
        return fine_tune(net, retain_loader, n_steps, lr=lr, schedule=one_cycle(warm_up=0.2), **recovery)
