"""Stochastic teacher: imitate an untrained net on the forget set, then recover with the original as second teacher.

Impair: minimise KL(q || p_w) over the forget set, q the softmax output of the same architecture freshly initialised.
Repair: minimise CE + alpha * KL(p_original || p_w) over the retain set. Made for class forgetting: of a random subset
a retrained model keeps more than an untrained one knows. Source: Zhang et al. 2023, "Machine unlearning methodology
based on stochastic teacher network"; Castaldo et al. 2023, "Machine Unlearning", section 4 (alpha 0.5; 15 epochs of
learning rate 1e-6 to 1e-8 in the first phase, here a few steps of SGD at 0.01).

Hyper-parameters:
  forget_epochs: passes over the forget set, imitating the untrained net
  forget_lr: learning rate of those
  alpha: weight of KL to the original in the repair
  epochs: passes over the retain set in the repair
  lr: learning rate of the repair, at its highest
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.device import device_of, memory_format
from kit.methods.shared.surgery import reset_parameters
from kit.plan import Plan, planned_phases
from kit.training import cross_entropy, fine_tune

RANGES = {"forget_epochs": (0.2, 2.0), "forget_lr": (1e-3, 1e-1), "alpha": (0.1, 0.9), "lr": (1e-4, 1e-1)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    forget_epochs: float = 1.0,
    forget_lr: float = 0.01,
    alpha: float = 0.5,
    epochs: float = 1.0,
    lr: float = 0.001,
    **recovery: Any,
) -> nn.Module:
    """Impair for `forget_epochs` of the forget set at `forget_lr`, repair for `epochs` of the retain set at `lr`."""
    torch.manual_seed(seed)
    n_impair, n_repair = planned_phases(plan, forget_epochs * len(forget_loader), epochs * len(retain_loader))
    original, teacher = _frozen(net).eval(), _frozen(net)
    reset_parameters(teacher.requires_grad_(True))  # all of it is untrained, what is frozen in the net too
    teacher.requires_grad_(False)
    teacher.train()  # an untrained net has no statistics of its own: it takes each batch's

    def impair(student: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return _divergence(teacher, student(images), images)

    def repair(student: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        logits = student(images)
        return F.cross_entropy(logits.float(), labels) + alpha * _divergence(original, logits, images)

    fine_tune(net, forget_loader, n_impair, lr=forget_lr, objective=impair, **recovery)
    return fine_tune(net, retain_loader, n_repair, lr=lr, objective=repair if alpha else cross_entropy, **recovery)


def _frozen(net: nn.Module) -> nn.Module:
    """A copy that no optimiser changes."""
    return copy.deepcopy(net).requires_grad_(False).to(memory_format=memory_format(device_of(net)))


def _divergence(teacher: nn.Module, logits: Tensor, images: Tensor) -> Tensor:
    """KL(teacher || student) in nats, mean over the batch; logits (n, n_classes) are the student's."""
    with torch.no_grad():
        target = F.log_softmax(teacher(images).float(), dim=1)
    return F.kl_div(F.log_softmax(logits.float(), dim=1), target, reduction="batchmean", log_target=True)
