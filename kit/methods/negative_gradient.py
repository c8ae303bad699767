"""Negative gradient: ascend the loss of the forget set.

Minimises L(w) = -mean CE(f_w(x), y) over the forget set alone. Source: the Sunshine report on the competition,
version 2 (SGD, learning rate 0.005, cosine); Golatkar, Achille and Soatto 2020, "Eternal Sunshine of the Spotless Net"
(the baseline there). On Kaggle it scored 0.0001.

Hyper-parameters:
  epochs: passes over the forget set
  lr: learning rate of the ascent, at its highest
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kit.plan import Plan, planned_steps
from kit.training import cross_entropy, fine_tune

RANGES = {"epochs": (0.1, 2.0), "lr": (1e-5, 1e-2)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    epochs: float = 1.0,
    lr: float = 0.005,
    **recovery: Any,
) -> nn.Module:
    """Maximise the cross-entropy of the forget set for `epochs` epochs of SGD, learning rate `lr` along a cosine."""
    torch.manual_seed(seed)
    n_steps = planned_steps(plan, epochs * len(forget_loader))
    return fine_tune(net, forget_loader, n_steps, lr=lr, objective=_negative_cross_entropy, **recovery)


def _negative_cross_entropy(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return -cross_entropy(net, images, labels)
