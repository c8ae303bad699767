"""Transposed weights (toshi_k, 5th prize, the first of two kinds): turn every kernel on its side, then fine-tune.

weight <- weight with height and width swapped, for every convolution, conv1 and shortcuts too; 3 epochs on the retain
set. Source: the participant's write-up of the competition (learning rate 1e-3 along a cosine, once an epoch). 246
of the 512 checkpoints were of this kind, 266 of `pseudo_label`'s; together they got 0.0785.

Hyper-parameters:
  epochs: passes over the retain set
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from kit.methods.shared.schedules import cosine_per_epoch
from kit.methods.shared.surgery import transpose_kernels
from kit.plan import Plan, planned_steps
from kit.training import fine_tune

RANGES = {"epochs": (1, 5), "lr": (1e-4, 1e-2)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    epochs: int = 3,
    **recovery: Any,
) -> nn.Module:
    """Transpose the kernels and train for `epochs` epochs."""
    torch.manual_seed(seed)
    n_steps = planned_steps(plan, epochs * len(retain_loader))
    transpose_kernels(net)
    return fine_tune(net, retain_loader, n_steps, schedule=cosine_per_epoch(epochs), **recovery)
