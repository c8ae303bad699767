"""sun, 7th prize: reset the last layer, then train a few random tensors an epoch, with noise, and in the end all.

fc is drawn anew. Each of the first 5 of 9 epochs on the retain set trains 9 random tensors and those of BatchNorm
outside shortcuts, all others held; from the second of them on N(0, 0.04^2) is added to 6 of the 9 first, except to
those that an earlier epoch had trained. The last 4 epochs train everything. Every epoch has an optimiser of its own.
Source: the notebook of the competition (learning rate 2e-4, in the last epoch 1e-3).

Hyper-parameters:
  partial_epochs: epochs that train a few tensors
  n_tensors: tensors that each of them trains
  n_noisy: of them, those that get noise first
  noise: its standard deviation
  epochs: epochs that train all tensors
  lr: learning rate
  last_lr: that of the last epoch
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from kit.methods.shared.schedules import constant
from kit.methods.shared.surgery import add_normal, last_layer, norm_names, one_image, reset_layer, training_only
from kit.plan import Plan, planned_phases
from kit.training import fine_tune

RANGES = {"partial_epochs": (1, 5), "n_tensors": (4, 20), "noise": (0.0, 0.2), "lr": (2e-5, 2e-3)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    partial_epochs: int = 5,
    n_tensors: int = 9,
    n_noisy: int = 6,
    noise: float = 0.04,
    epochs: int = 4,
    lr: float = 2e-4,
    last_lr: float = 0.001,
    **recovery: Any,
) -> nn.Module:
    """Train `n_tensors` tensors for each of `partial_epochs` epochs, then all for `epochs`, the last at `last_lr`."""
    torch.manual_seed(seed)
    steps = planned_phases(plan, *[len(retain_loader)] * (partial_epochs + epochs))
    reset_layer(last_layer(net, one_image(net, retain_loader)))
    parameters = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    norms = norm_names(net) & set(parameters)
    ordinary = [name for name in parameters if name not in norms]
    trained: set[str] = set()
    for epoch, n_steps in enumerate(steps[:partial_epochs]):
        chosen = [ordinary[index] for index in torch.randperm(len(ordinary))[:n_tensors].tolist()]
        if epoch > 0:  # the choice is in random order: its first ones are a random part of it
            add_normal((parameters[name] for name in chosen[:n_noisy] if name not in trained), noise)
        trained.update(chosen)
        with training_only(net, {*chosen, *norms}):
            fine_tune(net, retain_loader, n_steps, lr=lr, schedule=constant, **recovery)
    for left, n_steps in zip(range(epochs, 0, -1), steps[partial_epochs:], strict=True):
        fine_tune(net, retain_loader, n_steps, lr=lr if left > 1 else last_lr, schedule=constant, **recovery)
    return net
