"""sebastian, 4th prize: redraw the 99% smallest weights, then fine-tune towards the original's entropies.

Of all weights and biases of convolutions and linear layers together the 99% smallest in magnitude go: weights are
drawn anew from U(-b, b), b = 1 / sqrt(fan in), biases stay 0. Then int(3.2 epochs) + 1 steps minimise CE, class y
weighted by its number of retain examples to the power -0.1, plus the mean squared difference between the entropies of
the outputs and of the original's in evaluation mode; the result is rounded to float16 and back. Source: the notebook of
the competition (learning rate 5e-4; private score 0.0863).

Hyper-parameters:
  share: share of the smallest weights that is drawn anew
  epochs: passes over the retain set
  class_power: a class' examples to this power are its weight in CE
  entropy_weight: weight of the difference of the entropies
  lr: learning rate, at its highest
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.device import device_of
from kit.methods.shared.data import class_counts
from kit.methods.shared.schedules import constant
from kit.methods.shared.surgery import layers, replace_where, round_to, smallest, trained
from kit.methods.shared.teaching import frozen_copy
from kit.plan import Plan, planned_steps
from kit.training import fine_tune

RANGES = {"share": (0.3, 0.999), "epochs": (2.0, 5.0), "entropy_weight": (0.0, 3.0), "lr": (5e-5, 5e-3)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    share: float = 0.99,
    epochs: float = 3.2,
    class_power: float = -0.1,
    entropy_weight: float = 1.0,
    lr: float = 5e-4,
    **recovery: Any,
) -> nn.Module:
    """Redraw the share `share`, then train at `lr`. class_power: of the number of a class' examples in its weight;
    entropy_weight: of the second term of the loss."""
    torch.manual_seed(seed)
    n_steps = planned_steps(plan, int(epochs * len(retain_loader)) + 1)
    weights = class_counts(retain_loader).float().clamp(min=1).pow(class_power).to(device_of(net))
    loss = partial(_loss, teacher=frozen_copy(net), class_weights=weights, entropy_weight=entropy_weight)
    redraw_smallest(net, share)
    fine_tune(net, retain_loader, n_steps, lr=lr, schedule=constant, objective=loss, **recovery)
    round_to(net, torch.float16)
    return net


def redraw_smallest(net: nn.Module, share: float) -> None:
    """Draw the share `share` of the layers' weights anew in place; biases among them become 0."""
    found = trained(p for layer in layers(net).values() for p in layer.parameters(recurse=False))
    parameters = list(dict.fromkeys(found))
    magnitudes = torch.cat([parameter.detach().abs().flatten() for parameter in parameters])
    masks = smallest(magnitudes, share).split([parameter.numel() for parameter in parameters])
    for parameter, mask in zip(parameters, masks, strict=True):
        fresh = torch.zeros(parameter.shape)
        if parameter.ndim > 1:
            bound = parameter[0].numel() ** -0.5
            fresh.uniform_(-bound, bound)
        replace_where(mask.view(parameter.shape), parameter, fresh)


def _loss(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    teacher: nn.Module,
    class_weights: Tensor,
    entropy_weight: float,
) -> Tensor:
    logits = net(images).float()
    with torch.no_grad():
        target = _entropy(teacher(images).float())
    weights = class_weights[labels]
    weighted = (weights * F.cross_entropy(logits, labels, reduction="none")).sum() / weights.sum()
    return weighted + entropy_weight * F.mse_loss(_entropy(logits), target)


def _entropy(logits: Tensor) -> Tensor:
    """Of the softmax output, in nats, (n,)."""
    log_p = F.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)
