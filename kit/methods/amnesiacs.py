"""amnesiacs, 6th prize: reset the first and the last layer, learn from the original on other data, then repair.

conv1 and fc are drawn anew. 3 epochs on the validation set minimise KL(p* || p_w), p the softmax of logits / 5 and p*
the original's in evaluation mode; 3 epochs on the retain set minimise CE + soft CE + KL, the latter two with the same
temperature and without a factor 25. Source: the notebook of the competition (learning rates 9e-4, then 1e-3 along a
cosine once an epoch; private score 0.0783). Other nets: the first convolution (or linear layer) and the last layer.

Hyper-parameters:
  temperature: divides the logits in the soft losses
  warm_up_epochs: passes over the validation set, imitating the original
  warm_up_lr: learning rate of those
  epochs: passes over the retain set in the repair
  lr: learning rate of the repair, at its highest
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.methods.shared.schedules import constant, cosine_per_epoch
from kit.methods.shared.surgery import first_layer, last_layer, one_image, reset_layer
from kit.methods.shared.teaching import frozen_copy, kl_divergence
from kit.plan import Plan, planned_phases
from kit.training import fine_tune

RANGES = {"temperature": (1.0, 10.0), "warm_up_epochs": (0.5, 4.0), "lr": (1e-4, 1e-2)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    temperature: float = 5.0,
    warm_up_epochs: float = 3.0,
    warm_up_lr: float = 9e-4,
    epochs: int = 3,
    lr: float = 0.001,
    **recovery: Any,
) -> nn.Module:
    """Reset, imitate for `warm_up_epochs` of the validation set at `warm_up_lr`, repair for `epochs` of the retain
    set at `lr`."""
    torch.manual_seed(seed)
    n_warm_up, n_repair = planned_phases(plan, warm_up_epochs * len(val_loader), epochs * len(retain_loader))
    taught = {"teacher": frozen_copy(net), "temperature": temperature}
    ends = (first_layer(net), last_layer(net, one_image(net, retain_loader)))
    for layer in dict.fromkeys(ends):  # one and the same in a net of a single layer
        reset_layer(layer)
    imitate, repair = partial(_imitate, **taught), partial(_repair, **taught)
    fine_tune(net, val_loader, n_warm_up, lr=warm_up_lr, schedule=constant, objective=imitate, **recovery)
    falling = cosine_per_epoch(epochs)
    return fine_tune(net, retain_loader, n_repair, lr=lr, schedule=falling, objective=repair, **recovery)


def _imitate(net: nn.Module, images: Tensor, labels: Tensor, *, teacher: nn.Module, temperature: float) -> Tensor:
    with torch.no_grad():
        target = teacher(images)
    return kl_divergence(target, net(images), temperature)


def _repair(net: nn.Module, images: Tensor, labels: Tensor, *, teacher: nn.Module, temperature: float) -> Tensor:
    logits = net(images).float()
    with torch.no_grad():
        target = teacher(images).float()
    soft = F.cross_entropy(logits / temperature, F.softmax(target / temperature, dim=1))
    return F.cross_entropy(logits, labels) + soft + kl_divergence(target, logits, temperature)
