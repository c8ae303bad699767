"""Pseudo-labels (toshi_k, 5th prize, the second of two kinds): learn what a model that has forgotten calls each image.

A copy unlearns by transposed weights (`transpose`) and labels the forget set with its own predictions; then the
original is fine-tuned on the retain set with its labels and the forget set with those. Source: the participant's
write-up of the competition, of which we know that 266 of the 512 checkpoints were fine-tuned with pseudo-labels. Its
details are not verified: the labelling model, the mixture of both sets and every number here are ours.

Hyper-parameters:
  label_epochs: passes over the retain set of the model that gives the labels
  epochs: passes over both sets
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from kit.device import device_of
from kit.methods.shared.data import interleaved, relabelled
from kit.methods.shared.schedules import cosine_per_epoch
from kit.methods.shared.surgery import transpose_kernels
from kit.plan import Plan, planned_phases
from kit.training import fine_tune

RANGES = {"label_epochs": (1, 4), "epochs": (1, 5), "lr": (1e-4, 1e-2)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    label_epochs: int = 3,
    epochs: int = 3,
    **recovery: Any,
) -> nn.Module:
    """Train the labelling copy for `label_epochs` of the retain set, the original for `epochs` of both sets, whose
    batches come in random order."""
    torch.manual_seed(seed)
    n_both = len(retain_loader) + len(forget_loader)
    n_label, n_steps = planned_phases(plan, label_epochs * len(retain_loader), epochs * n_both)
    labeller = copy.deepcopy(net)
    transpose_kernels(labeller)
    fine_tune(labeller, retain_loader, n_label, schedule=cosine_per_epoch(label_epochs), **recovery)
    labeller.eval()
    named = relabelled(forget_loader, device_of(net), lambda images, labels: labeller(images).argmax(dim=1))
    batches = interleaved(retain_loader, named)
    return fine_tune(net, batches, n_steps, schedule=cosine_per_epoch(epochs), **recovery)
