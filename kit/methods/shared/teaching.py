"""Losses beside cross-entropy, most of them against what a teacher says."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.device import device_of, memory_format


def kl_divergence(target: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(target || student) in nats, mean over the batch, of logits (n, n_classes) divided by the temperature.

    It has no factor temperature^2. No gradient goes into `target`.
    """
    p = F.log_softmax(target.detach().float() / temperature, dim=1)
    return F.kl_div(F.log_softmax(logits.float() / temperature, dim=1), p, reduction="batchmean", log_target=True)


def contrast(logits: Tensor, others: Tensor, temperature: float) -> Tensor:
    """Mean of -log softmax(logits others^T / temperature) over all pairs, logits (n, n_classes), others (m, n_classes).

    Least where each example resembles all others alike. No gradient goes into `others`.
    """
    with torch.autocast(logits.device.type, enabled=False):  # of such sums bfloat16 would lose what matters
        similarity = logits.float() @ others.detach().float().T / temperature
    return -F.log_softmax(similarity, dim=1).mean()


def frozen_copy(net: nn.Module) -> nn.Module:
    """A teacher: a copy of `net` in evaluation mode that no optimiser changes."""
    return copy.deepcopy(net).eval().requires_grad_(False).to(memory_format=memory_format(device_of(net)))
