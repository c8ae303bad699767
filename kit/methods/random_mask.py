"""Random mask: zero half of the weights at random, then fine-tune with Adam.

w <- m w, each m zero with probability 0.5, for every tensor but those of BatchNorm. Source: a participant's public
notebook of the competition (5 epochs of Adam, learning rate 1e-4 along a cosine to 1e-5, weight decay 1e-4; private
score 0.0937), which tells BatchNorm by the name "bn" and so masks that of a ResNet's shortcuts, as here.

Hyper-parameters:
  share: share of the weights that is set to zero
  epochs: passes over the retain set
  lr: learning rate of Adam, at its highest
  min_lr: the same at the end
  weight_decay: of Adam
  bfloat16: train in bfloat16 where autocast allows it
"""

from collections.abc import Iterable

import torch
from torch import nn

from kit.errors import InputError
from kit.methods.shared.schedules import cosine_to
from kit.methods.shared.surgery import norm_names, zero_at_random
from kit.plan import Plan, planned_steps
from kit.training import fused, train

RANGES = {"share": (0.05, 0.9), "epochs": (1.0, 6.0), "lr": (1e-5, 1e-3)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    share: float = 0.5,
    epochs: float = 5.0,
    lr: float = 1e-4,
    min_lr: float = 1e-5,
    weight_decay: float = 1e-4,
    bfloat16: bool = False,
) -> nn.Module:
    """Zero the share `share`, then minimise the cross-entropy of the retain set for `epochs` epochs of Adam."""
    if not lr > 0:
        raise InputError(f"lr is {lr}: expected a positive learning rate")
    torch.manual_seed(seed)
    n_steps = planned_steps(plan, epochs * len(retain_loader))
    kept = norm_names(net)
    zero_at_random((p for name, p in net.named_parameters() if name not in kept), share)
    optimizer = fused(torch.optim.Adam, net.parameters(), lr, weight_decay=weight_decay)
    dtype = torch.bfloat16 if bfloat16 else None
    return train(net, retain_loader, n_steps, optimizer, schedule=cosine_to(min_lr / lr), autocast_dtype=dtype)
