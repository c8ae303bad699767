"""CF-k (catastrophic forgetting of the last k layers): fine-tune only the end of the net on the retain set.

Minimises CE over the retain set in the parameters from the k-th last convolution or linear layer on; all before it are
held. BatchNorm's statistics move everywhere, as in any training. Source: Goel, Prabhu, Sanyal, Lim, Torr and Kumaraguru
2022, "Towards Adversarial Evaluations for Inexact Machine Unlearning". The numbers are starting points of ours.

Hyper-parameters:
  k: layers that are trained, counted from the end
  epochs: passes over the retain set
  lr: learning rate, at its highest
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from kit.methods.shared.surgery import names_of_last, one_image, training_only
from kit.plan import Plan, planned_steps
from kit.training import fine_tune

RANGES = {"k": (1, 20), "epochs": (1.0, 5.0), "lr": (1e-3, 1e-1)}


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
    lr: float = 0.01,
    **recovery: Any,
) -> nn.Module:
    """Train the last `k` layers, all where there are fewer, for `epochs` epochs."""
    torch.manual_seed(seed)
    n_steps = planned_steps(plan, epochs * len(retain_loader))
    with training_only(net, names_of_last(net, k, one_image(net, retain_loader))):
        return fine_tune(net, retain_loader, n_steps, lr=lr, **recovery)
