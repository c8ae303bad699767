"""Bad teacher: learn from an untrained net on the forget set and from the original on part of the retain set, at once.

Minimises the mean of KL(q || p_w) over D_f and KL(p* || p_w) over 30% of D_r, q the output of the same architecture
freshly initialised and p* the original's. Source: Chundawat, Tarun, Mandal and Kankanhalli 2023, "Can Bad Teaching
Induce Forgetting?", eq. 2 (temperature 1, one epoch). Each step takes a batch of both sets, weighted by their sizes.

Hyper-parameters:
  retain_share: length of an epoch, as a share of the retain set
  temperature: divides the logits of teachers and student
  epochs: so many times that share
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kit.methods.shared.surgery import reset_parameters
from kit.methods.shared.teaching import frozen_copy, kl_divergence
from kit.plan import Plan, planned_steps
from kit.training import cycle, fine_tune, unpack

RANGES = {"retain_share": (0.1, 1.0), "temperature": (0.5, 5.0), "lr": (1e-4, 1e-2)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    retain_share: float = 0.3,
    temperature: float = 1.0,
    epochs: float = 1.0,
    **recovery: Any,
) -> nn.Module:
    """Train for `epochs` times as many steps as the share `retain_share` of the retain set has batches.

    They run through the whole set in an order of each seed's: with epochs * retain_share at 1 or more all of it is
    seen, and up to that no image twice.
    """
    torch.manual_seed(seed)
    n_steps = planned_steps(plan, epochs * retain_share * len(retain_loader))
    good, bad = frozen_copy(net), copy.deepcopy(net)
    reset_parameters(bad.requires_grad_(True))  # all of it is untrained, what is frozen in the net too
    bad.requires_grad_(False)
    bad.train()  # an untrained net has no statistics of its own: it takes each batch's
    n_forget, n_retain = len(forget_loader.dataset), retain_share * len(retain_loader.dataset)
    share, batches = n_forget / max(1.0, n_forget + n_retain), cycle(forget_loader, net)

    def distance(teacher: nn.Module, student: nn.Module, images: Tensor) -> Tensor:
        with torch.no_grad():
            target = teacher(images)
        return kl_divergence(target, student(images), temperature)

    def both(student: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        forget, _ = unpack(next(batches), images.device)
        return (1 - share) * distance(good, student, images) + share * distance(bad, student, forget)

    return fine_tune(net, retain_loader, n_steps, objective=both, **recovery)
