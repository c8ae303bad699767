"""calibrated restart, this project's own: learn the retain set anew from noise, the original as teacher; then make the
last layer as sure of held-out examples as the original is of them.

Every weight matrix and kernel is drawn anew from N(0, rms^2), rms that of its own entries; biases and normalisation
stay. Where steps are too few to learn from noise, a share of the old weights stays in the new (Ash and Adams 2020).
Training on the retain set minimises CE, weighted by 1 / class count, + KL(original || net) for a few passes. What such
a short training misses is how sure the net is, and how far runs lie apart: both are seen on the validation set, which
neither net was trained on. There the original is as sure as a retrained net would be of the forget set, and its
distance from the restarted net says how far two trainings lie apart. So the last layer is scaled until both nets are
equally sure of their answers, and gets normal noise that moves an example's log-odds by `spread` times sqrt(1/2) of
that distance, each checkpoint its own. Classes count as in the forget set. Source: docs/own_method.md; teacher: Hinton,
Vinyals and Dean 2015.

Hyper-parameters:
  epochs: passes over the retain set
  lr: learning rate at its highest, of Adam
  weight_decay: of Adam
  teaching: weight of KL(original || net)
  spread: how far apart runs are to lie, 1 as far as the validation set says; 0: no noise
  full_steps: steps from which on nothing of the old weights stays; with fewer, the share of steps that are missing
  match: scale and noise, or neither
  bfloat16: train in bfloat16 where autocast allows it
"""

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.device import device_of
from kit.methods.shared.calibration import balanced_as, held_out_logits, match_held_out
from kit.methods.shared.data import class_counts
from kit.methods.shared.schedules import one_cycle
from kit.methods.shared.surgery import n_classes, one_image, redraw
from kit.methods.shared.teaching import frozen_copy, kl_divergence
from kit.plan import Plan, planned_phases
from kit.training import fused, train, unpack

RANGES = {"epochs": (0.5, 3.0), "lr": (3e-4, 1e-2), "weight_decay": (1e-4, 2e-2), "spread": (0.4, 1.2)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    epochs: float = 1.5,
    lr: float = 0.001,
    weight_decay: float = 0.005,
    teaching: float = 1.0,
    spread: float = 0.85,
    full_steps: int = 600,
    match: bool = True,
    bfloat16: bool = False,
) -> nn.Module:
    """Restart, learn for `epochs` epochs at `lr` along one cycle (up in the first 15% of the steps), calibrate."""
    torch.manual_seed(seed)
    (n_steps,) = planned_phases(plan, epochs * len(retain_loader))
    classes = n_classes(net, one_image(net, retain_loader))
    counts = F.pad(class_counts(retain_loader).cpu(), (0, classes))[:classes]
    held_out = [unpack(batch, device_of(net)) for batch in val_loader] if match else []
    before = held_out_logits(net, held_out) if match else None
    teacher = frozen_copy(net) if teaching else None
    redraw(net, kept=max(0.0, 1 - n_steps / max(1, full_steps)))
    weights = (1.0 / counts.clamp(min=1)).to(device_of(net))
    objective = partial(_learn, weights=weights, teacher=teacher, teaching=teaching)
    optimizer = fused(torch.optim.Adam, net.parameters(), lr, weight_decay=weight_decay)
    precision = torch.bfloat16 if bfloat16 else None
    schedule = one_cycle(warm_up=0.15)
    train(net, retain_loader, n_steps, optimizer, schedule=schedule, objective=objective, autocast_dtype=precision)
    if match:
        labels = torch.cat([labels for _, labels in held_out]).cpu()
        forgotten = F.pad(class_counts(forget_loader).cpu(), (0, len(counts)))[: len(counts)]
        match_held_out(net, held_out, before, balanced_as(labels, forgotten, counts), spread)
    return net


def _learn(
    net: nn.Module, images: Tensor, labels: Tensor, *, weights: Tensor, teacher: nn.Module | None, teaching: float
) -> Tensor:
    logits = net(images).float()
    loss = F.cross_entropy(logits, labels, weight=weights)
    if teacher is None:
        return loss
    with torch.no_grad():
        target = teacher(images)
    return loss + teaching * kl_divergence(target, logits)
