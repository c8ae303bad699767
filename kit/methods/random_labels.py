"""Random labels: fine-tune on both sets, the forget set with wrong labels.

Minimises CE over the retain set with its labels and over the forget set with labels drawn at random from the other
classes, once for each checkpoint. Source: Graves, Nagisetty and Ganesh 2021, "Amnesiac Machine Learning" (unlearning);
Golatkar, Achille and Soatto 2020 (the baseline there). The numbers are starting points of ours.

Hyper-parameters:
  epochs: passes over both sets
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from kit.device import device_of
from kit.methods.shared.data import interleaved, other_labels, relabelled
from kit.methods.shared.surgery import n_classes, one_image
from kit.plan import Plan, planned_steps
from kit.training import fine_tune

RANGES = {"epochs": (0.5, 3.0), "lr": (1e-5, 1e-2)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    epochs: float = 1.0,
    **recovery: Any,
) -> nn.Module:
    """Train for `epochs` epochs of both sets, whose batches come in random order."""
    torch.manual_seed(seed)
    n_steps = planned_steps(plan, epochs * (len(retain_loader) + len(forget_loader)))
    classes = n_classes(net, one_image(net, retain_loader))
    wrong = relabelled(forget_loader, device_of(net), lambda images, labels: other_labels(labels, classes))
    return fine_tune(net, interleaved(retain_loader, wrong), n_steps, **recovery)
