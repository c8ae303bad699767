"""fanchuan, 1st prize: push the forget set's outputs to uniform, then contrast and repair in turn.

First minimise KL(u || p_w(x)) over the forget set, u uniform. Then rounds of two passes: over the forget set minimise
-log softmax(f_w(x_f) . f_w(x_r) / 1.15), mean over all pairs with a retain batch of 256, whose outputs are held fixed;
over the retain set minimise CE. Source: the winner's notebook of the competition (SGD with momentum 0.9, a state of
its own for each of the three losses; private score 0.0985), and a participant's slides, where KL(u || p) +
0.85 KL(p || u) in the first pass got 0.1068.

Hyper-parameters:
  reverse_kl: weight of KL(p || u) in the first pass, 0.85 in the symmetrised variant
  uniform_lr: learning rate of the first pass
  rounds: rounds of contrast and repair
  contrast_lr: learning rate of the contrast, at its highest
  contrast_min_lr: the same at the end of the last round
  temperature: divides the products of outputs in the contrast
  retain_batch: images of a retain batch in both passes of a round
  retain_lr: learning rate of the repair
  weight_decay: of the repair
  momentum: of all three
  bfloat16: train in bfloat16 where autocast allows it
"""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.errors import InputError
from kit.methods.shared.data import rebatched
from kit.methods.shared.schedules import constant, cosine_to, part
from kit.methods.shared.teaching import contrast
from kit.plan import Plan, planned_phases
from kit.training import cycle, fused, train, unpack

RANGES = {"uniform_lr": (5e-4, 5e-2), "contrast_lr": (3e-5, 3e-3), "retain_lr": (4e-4, 4e-2), "reverse_kl": (0.0, 1.0)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    reverse_kl: float = 0.0,
    uniform_lr: float = 0.005,
    rounds: int = 8,
    contrast_lr: float = 3e-4,
    contrast_min_lr: float = 1e-6,
    temperature: float = 1.15,
    retain_batch: int = 256,
    retain_lr: float = 0.004,
    weight_decay: float = 0.01,
    momentum: float = 0.9,
    bfloat16: bool = False,
) -> nn.Module:
    """One pass at `uniform_lr`, then `rounds` rounds: contrast from `contrast_lr` along one cosine over all rounds to
    `contrast_min_lr`, repair at `retain_lr` with `weight_decay`.

    reverse_kl: weight of KL(p || u) in the first pass, 0.85 for the symmetrised variant. retain_batch: batch size of
    the retain set in both passes; the forget set comes in its loader's own.
    """
    if not contrast_lr > 0:
        raise InputError(f"contrast_lr is {contrast_lr}: expected a positive learning rate")
    torch.manual_seed(seed)
    retain_loader = rebatched(retain_loader, retain_batch)
    n_first, *passes = planned_phases(plan, len(forget_loader), *(len(forget_loader), len(retain_loader)) * rounds)
    uniform, contrasting, retaining = (
        fused(torch.optim.SGD, net.parameters(), lr, momentum=momentum, weight_decay=decay)
        for lr, decay in ((uniform_lr, 0.0), (contrast_lr, 0.0), (retain_lr, weight_decay))
    )
    run = partial(train, net, autocast_dtype=torch.bfloat16 if bfloat16 else None)
    to_uniform = partial(_divergence_from_uniform, reverse_kl=reverse_kl)
    run(forget_loader, n_first, uniform, schedule=constant, objective=to_uniform)
    falling = cosine_to(contrast_min_lr / contrast_lr)
    for index in range(rounds):
        n_contrast, n_retain = passes[2 * index : 2 * index + 2]
        against = partial(_contrast_with, batches=cycle(retain_loader, net), temperature=temperature)
        share = part(falling, index / rounds, (index + 1) / rounds)
        run(forget_loader, n_contrast, contrasting, schedule=share, objective=against)
        run(retain_loader, n_retain, retaining, schedule=constant)
    return net


def _divergence_from_uniform(net: nn.Module, images: Tensor, labels: Tensor, *, reverse_kl: float) -> Tensor:
    """KL(u || p) + reverse_kl * KL(p || u), mean over the batch."""
    log_p = F.log_softmax(net(images).float(), dim=1)
    log_n = math.log(log_p.shape[1])
    forward = -log_p.mean(dim=1) - log_n
    reverse = (log_p.exp() * log_p).sum(dim=1) + log_n
    return (forward + reverse_kl * reverse).mean()


def _contrast_with(
    net: nn.Module, images: Tensor, labels: Tensor, *, batches: Iterator[Any], temperature: float
) -> Tensor:
    """The forget batch goes through the net first; both batches count in BatchNorm's statistics."""
    logits = net(images)
    with torch.no_grad():
        others = net(unpack(next(batches), images.device)[0])
    return contrast(logits, others, temperature)
