"""L1-sparse fine-tuning: fine-tune on the retain set with a penalty that drives weights to zero and then lets go.

Minimises CE + alpha (1 - e / E) |w|_1 over the retain set in epoch e of E. Source: Jia et al. 2023, "Model Sparsity Can
Simplify Machine Unlearning", eq. 3 with the decreasing schedule (learning rate 0.01, 10 epochs; alpha here is ours).

Hyper-parameters:
  alpha: strength of the penalty in the first epoch, none after the last
  epochs: passes over the retain set
  lr: learning rate, at its highest
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kit.methods.shared.schedules import per_epoch
from kit.plan import Plan, planned_steps
from kit.training import cross_entropy, fine_tune

RANGES = {"alpha": (1e-5, 1e-2), "epochs": (1, 15), "lr": (1e-3, 1e-1)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    alpha: float = 5e-4,
    epochs: int = 10,
    lr: float = 0.01,
    **recovery: Any,
) -> nn.Module:
    """Train for `epochs` epochs with the penalty's strength falling from `alpha` epoch by epoch."""
    torch.manual_seed(seed)
    n_steps = planned_steps(plan, epochs * len(retain_loader))
    strength, step = per_epoch(*(alpha * (1 - epoch / epochs) for epoch in range(epochs))), 0

    def sparse(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        nonlocal step
        step += 1
        norm = sum(parameter.abs().sum() for parameter in model.parameters())
        return cross_entropy(model, images, labels) + strength((step - 1) / n_steps) * norm

    return fine_tune(net, retain_loader, n_steps, lr=lr, objective=sparse, **recovery)
