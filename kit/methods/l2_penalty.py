"""L2 penalty: fine-tuning on the retain set with weights pulled towards zero, towards the original ones, or both.

Minimises L(w) = mean CE(f_w(x), y) + to_zero / 2 * |w|^2 + to_original / 2 * |w - w*|^2 over the retain set, w* the
original weights. Source: the Sunshine report on the competition, which names an "L2 penalty value on the existing
loss" without figures: those here are ours.

Hyper-parameters:
  to_zero: strength of the pull towards zero
  to_original: strength of the pull towards the original weights
  epochs: passes over the retain set
  lr: learning rate, at its highest
  momentum: of SGD
  bfloat16: train in bfloat16 where autocast allows it
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kit.plan import Plan, planned_steps
from kit.training import Objective, cross_entropy, fine_tune

RANGES = {"to_zero": (1e-3, 1.0), "to_original": (0.0, 0.5), "epochs": (1.0, 4.0), "lr": (1e-4, 1e-1)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    to_zero: float = 0.1,
    to_original: float = 0.0,
    epochs: float = 1.0,
    lr: float = 0.001,
    momentum: float = 0.9,
    bfloat16: bool = False,
) -> nn.Module:
    """Fine-tune for `epochs` epochs with the strengths `to_zero` and `to_original` of the two penalties."""
    torch.manual_seed(seed)
    n_steps = planned_steps(plan, epochs * len(retain_loader))
    return fine_tune(
        net,
        retain_loader,
        n_steps,
        lr=lr,
        momentum=momentum,
        weight_decay=to_zero,  # what SGD adds to the gradient for it is that of the first penalty
        objective=_pulled_to(net, to_original) if to_original else cross_entropy,
        bfloat16=bfloat16,
    )


def _pulled_to(net: nn.Module, strength: float) -> Objective:
    """Cross-entropy plus strength / 2 times the squared distance to the weights that `net` has now."""
    original = [parameter.detach().clone() for parameter in net.parameters()]

    def objective(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        pairs = zip(model.parameters(), original, strict=True)
        distance = sum((parameter - start).square().sum() for parameter, start in pairs)
        return cross_entropy(model, images, labels) + strength / 2 * distance

    return objective
