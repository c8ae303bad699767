"""Fisher forgetting: noise on every parameter, the larger the less the retain set tells about it.

w ~ N(w*, v), v = alpha F^-1 with F = mean_i sum_y p_y g_i(y)^2, the diagonal Fisher information on the retain set with
its expectation over all labels. Source: Golatkar, Achille and Soatto 2020, "Eternal Sunshine of the Spotless Net",
eq. 11, with the bounds of their code: 1 / (F + 1e-8) at most 1e3, in the last layer 1e2; for tensors of rank > 1
averaged over the inputs; ten times more in the last layer and for vectors. Their code takes every tensor whose first
dimension is the number of classes for the last layer, a hidden one of as many channels too; here it is the layer that
gives the logits. The Sunshine report on the competition estimated more than 120 hours for it (alpha 1e-6).

Hyper-parameters:
  alpha: strength of the noise: its variance where F is 1
  power: the noise's standard deviation is sqrt(alpha) F^-power
  forget_class: class that the last layer forgets altogether, None for none
  exact: take every gradient of every label, instead of an estimate of the same F
  fisher_epochs: passes over the retain set for the estimate of F
  epochs: passes over the retain set in the fine-tuning at the end
  bfloat16: estimate and fine-tune in bfloat16
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from kit.errors import InputError
from kit.fisher.diagonal import diagonal, estimated_diagonal, every_label, inputs
from kit.fisher.layers import head
from kit.fisher.per_sample import evaluating
from kit.plan import Plan, planned_phases
from kit.training import cycle, fine_tune

RANGES = {"alpha": (1e-8, 1e-4), "epochs": (0.0, 1.0), "lr": (1e-4, 1e-2)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    alpha: float = 1e-6,
    power: float = 0.5,
    forget_class: int | None = None,
    exact: bool = False,
    fisher_epochs: float = 1.0,
    epochs: float = 0.0,
    bfloat16: bool = False,
    **recovery: Any,
) -> nn.Module:
    """Add the noise, then fine-tune for `epochs`, by default not at all.

    power: the noise's standard deviation is sqrt(alpha) F^-power: 0.5, or 0.25 as in the paper's derivation.
    forget_class: the last layer forgets this class altogether (mean 0, v 1e-4 before the factor ten). exact: every
    gradient of every label; False estimates the same F at the cost of one training epoch for each of `fisher_epochs`.
    Of few batches the estimate is coarse and 1 / F on average too large, several times with one batch and still plainly
    with seven. More signs a batch would cost as much as more batches, which a plan of so few steps does not grant: take
    exact ones there. bfloat16 applies to the estimate and to fine-tuning. A planned step is an optimiser step or a
    batch of Fisher information; exact ones take longer.
    """
    torch.manual_seed(seed)
    n_fisher, n_repair = planned_phases(
        plan, fisher_epochs * len(retain_loader), epochs * len(retain_loader), least=(1,)
    )
    last = _last_layer(net, retain_loader, forget_class)
    batches = islice(cycle(retain_loader), n_fisher)
    if exact:
        fisher = diagonal(net, batches, every_label)
    else:
        dtype = torch.bfloat16 if bfloat16 else None
        fisher = estimated_diagonal(net, batches, every_label, autocast_dtype=dtype).diagonal
    for name, parameter in net.named_parameters():
        if name in fisher:
            _scrub(parameter, fisher[name], name in last, alpha, power, forget_class)
    return fine_tune(net, retain_loader, n_repair, bfloat16=bfloat16, **recovery)


def _last_layer(net: nn.Module, loader: Iterable, forget_class: int | None) -> list[str]:
    """Names of its parameters; InputError where it has no row for the class."""
    with evaluating(net):
        last = head(net, next(inputs(net, cycle(loader)))[0])
    n_classes = len(net.get_parameter(last[0])) if last else 0
    if forget_class is not None and not last:
        raise InputError("forget_class: no layer of the net has a row for each class: leave it out")
    if forget_class is not None and (isinstance(forget_class, float) or not 0 <= forget_class < n_classes):
        raise InputError(f"forget_class is {forget_class}: the net has the classes 0 to {n_classes - 1}, whole numbers")
    return last


@torch.no_grad()
def _scrub(
    parameter: nn.Parameter, fisher: Tensor, is_last: bool, alpha: float, power: float, forget_class: int | None
) -> None:
    """Draw one tensor anew around itself. is_last: it belongs to the last layer, whose first dimension is classes."""
    inverse = (1 / (fisher + 1e-8)).clamp(max=1e2 if is_last else 1e3)
    variance = alpha * inverse ** (2 * power)
    if parameter.ndim > 1:
        variance = variance.mean(dim=1, keepdim=True).expand_as(parameter).clone()
    if is_last and forget_class is not None:
        parameter[forget_class] = 0
        variance[forget_class] = 1e-4
    if is_last or parameter.ndim == 1:
        variance *= 10
    noise = torch.randn(parameter.shape, dtype=parameter.dtype)  # on the CPU: the same on every device
    parameter += variance.sqrt() * noise.to(parameter.device)
