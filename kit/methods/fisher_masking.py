"""Fisher masking: zero the weights that tell more about the forget set than about the retain set, then fine-tune.

The share R of the weights with the largest F_f - F_r is set to zero, F_f and F_r the diagonals of the empirical Fisher
information on forget and retain set; convolutions and linear layers only, no biases and no BatchNorm. Then 5 epochs on
the retain set. Source: Liu et al. 2023, "Unlearning with Fisher masking" (R 0.02, importance of a convolution averaged
per kernel); Castaldo et al. 2023, "Machine Unlearning", section 5 (R 0.01 for a class, 0.4 for a random subset).

Hyper-parameters:
  share: share of the weights that is set to zero
  per_kernel: zero whole (out, in) kernels, by their mean importance
  fisher_epochs: passes over the retain set for its importance, a share below 1
  epochs: passes over the retain set in the fine-tuning at the end
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from kit.errors import InputError
from kit.fisher.diagonal import diagonal
from kit.plan import Plan, planned_phases
from kit.training import cycle, fine_tune

RANGES = {"share": (0.001, 0.3), "epochs": (1.0, 5.0), "lr": (1e-4, 1e-1)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    share: float = 0.02,
    per_kernel: bool = False,
    fisher_epochs: float = 0.1,
    epochs: float = 5.0,
    **recovery: Any,
) -> nn.Module:
    """Zero the share `share` of the weights, F_r taken on `fisher_epochs` of the retain set drawn anew by each seed;
    then recover. per_kernel: importance is averaged over each (out, in) kernel, which is zeroed as a whole.

    A planned step is an optimiser step or a batch of Fisher information, which takes about as long."""
    if not 0 <= share <= 1:
        raise InputError(f"share is {share}: expected a share of the weights from 0 to 1")
    torch.manual_seed(seed)
    n_forget, n_retain, n_repair = planned_phases(
        plan, len(forget_loader), fisher_epochs * len(retain_loader), epochs * len(retain_loader), least=(1, 1)
    )
    forget = diagonal(net, islice(cycle(forget_loader), n_forget))
    retain = diagonal(net, islice(cycle(retain_loader), n_retain))
    weights = {name: p for name, p in net.named_parameters() if name in forget and p.ndim > 1}
    excess = {name: _excess(forget[name] - retain[name], per_kernel) for name in weights}
    _zero_largest(weights, excess, share)
    return fine_tune(net, retain_loader, n_repair, **recovery)


def _excess(difference: Tensor, per_kernel: bool) -> Tensor:
    if per_kernel and difference.ndim > 2:
        return difference.mean(dim=tuple(range(2, difference.ndim)), keepdim=True).expand_as(difference)
    return difference


@torch.no_grad()
def _zero_largest(weights: dict[str, nn.Parameter], excess: dict[str, Tensor], share: float) -> None:
    """Zero the share of all weights with the largest excess, in place; ties in the order of the parameters."""
    flat = torch.cat([tensor.reshape(-1) for tensor in excess.values()])
    kept = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
    kept[flat.sort(descending=True, stable=True).indices[: round(share * len(flat))]] = False
    sizes = [weight.numel() for weight in weights.values()]
    for weight, mask in zip(weights.values(), kept.split(sizes), strict=True):
        weight.mul_(mask.view(weight.shape))
