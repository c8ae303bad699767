"""kookmin (masked re-initialisation by gradient), 2nd prize: redraw what both sets' gradients agree on, then fine-tune.

G = sum over the batches of a random part of the retain set, as large as the forget set, of grad CE, minus the same sum
over the forget set. In each convolution the 30% of the weights with the smallest |G| are drawn anew (Kaiming normal,
fan out). Then 5 epochs on the retain set in which the gradients of the other weights of convolutions count a tenth;
weight decay acts on them in full. BatchNorm and the last layer are not reset. Source: the notebook of the competition
(private score 0.0902); there all runs but the first took G in evaluation mode, as here.

Hyper-parameters:
  share: share of each convolution's weights that is drawn anew
  kept_factor: times the gradients of the other weights
  epochs: passes over the retain set
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn

from kit.device import device_of
from kit.methods.shared.schedules import per_epoch
from kit.methods.shared.surgery import convolutions, replace_where, smallest
from kit.plan import Plan, planned_phases
from kit.training import cross_entropy, cycle, fine_tune, unpack

RANGES = {"share": (0.1, 0.6), "kept_factor": (0.0, 1.0), "epochs": (2, 6), "lr": (1e-4, 1e-2)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    share: float = 0.3,
    kept_factor: float = 0.1,
    epochs: int = 5,
    **recovery: Any,
) -> nn.Module:
    """Redraw the share `share` of each convolution's weights, then train for `epochs` epochs whose learning rates rise
    and fall in a line (of 5: 1/3, 2/3, 1, 2/3, 1/3 of `lr`). kept_factor: of the other weights' gradients.

    A planned step is an optimiser step or a batch of G.
    """
    torch.manual_seed(seed)
    n_gradient, n_repair = planned_phases(plan, 2 * len(forget_loader), epochs * len(retain_loader), least=(2,))
    n_each = min(n_gradient // 2, len(forget_loader))  # of as many batches of both sets, or G would not be a difference
    n_repair += n_gradient - 2 * n_each
    weights = [conv.weight for conv in convolutions(net)]
    n_examples = len(forget_loader.dataset)
    net.zero_grad()
    _add_gradients(net, retain_loader, n_each, n_examples, 1.0)
    _add_gradients(net, forget_loader, n_each, n_examples, -1.0)
    changed = [weight for weight in weights if weight.grad is not None]
    masks = [smallest(weight.grad.abs(), share) for weight in changed]
    net.zero_grad()
    for weight, mask in zip(changed, masks, strict=True):
        fresh = nn.init.kaiming_normal_(torch.empty(weight.shape), mode="fan_out", nonlinearity="relu")
        replace_where(mask, weight, fresh)
    factors = [torch.where(mask, 1.0, kept_factor) for mask in masks]

    def slow_down(model: nn.Module) -> None:
        for weight, factor in zip(changed, factors, strict=True):
            weight.grad.mul_(factor)

    rates = _up_and_down(epochs)
    return fine_tune(net, retain_loader, n_repair, schedule=per_epoch(*rates), before_step=slow_down, **recovery)


def _add_gradients(net: nn.Module, loader: Iterable, n_batches: int, n_examples: int, sign: float) -> None:
    """Add to every parameter's gradient those of the batches' mean losses, over `n_examples` examples at most."""
    net.eval()
    for batch in islice(cycle(loader), n_batches):
        images, labels = (part[:n_examples] for part in unpack(batch, device_of(net)))
        n_examples -= len(labels)
        if len(labels):
            (sign * cross_entropy(net, images, labels)).backward()


def _up_and_down(epochs: int) -> list[float]:
    peak = (epochs + 1) // 2
    return [min((epoch + 1) / peak, (epochs - epoch) / (epochs + 1 - peak)) for epoch in range(epochs)]
