"""The one training loop: steps known in advance, a schedule that ends with them, the loss as an argument."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.device import device_of, memory_format
from kit.errors import InputError

Schedule = Callable[[float], float]
Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
Change = Callable[[nn.Module], None]


def cosine(progress: float) -> float:
    """From 1 at progress 0 to 0 at progress 1 along half a cosine (Loshchilov and Hutter 2017, eq. 5, one cycle)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def cross_entropy(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the batch."""
    return F.cross_entropy(net(images).float(), labels)


def unpack(batch: Mapping[str, Any] | Iterable[Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Images, float32 (n, C, H, W) in `memory_format`, and labels, int64 (n,), of a dict or tuple batch."""
    images, labels = (batch["image"], batch["age_group"]) if isinstance(batch, Mapping) else tuple(batch)[:2]
    images = images.to(device, torch.float32, non_blocking=True)
    return images.contiguous(memory_format=memory_format(device)), labels.to(device, non_blocking=True)


def cycle(loader: Iterable[Any], trained: nn.Module | None = None) -> Iterator[Any]:
    """Batches of `loader`, begun anew (and reshuffled) whenever it ends.

    trained: the net that they train. Where it has BatchNorm, which fails on maps of one pixel as of a ResNet-18 on
    32x32 images, a batch of one image is passed over if the loader has larger ones.
    """
    normalised = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in (trained or nn.Identity()).modules())
    least = 2 if normalised and getattr(loader, "batch_size", None) != 1 else 1
    larger, alone = False, []  # batches of one image wait until a larger one is met
    while True:
        empty = True
        for batch in loader:
            empty = False
            if len(batch["age_group"] if isinstance(batch, Mapping) else tuple(batch)[1]) >= least:
                larger, alone = True, []
                yield batch
            elif not larger:
                alone.append(batch)
        if empty:
            raise InputError("a data loader gave no batch: the data set behind it is empty")
        if not larger:
            least = 1
            yield from alone


def fused(kind: type[torch.optim.Optimizer], params: Iterable[Tensor], lr: float, **options: Any) -> Any:
    """torch's SGD or Adam, fused on a CPU where this torch can: the same update in fewer passes. On a GPU torch's own
    choice, as its fused forms refuse gradients of other strides than the weights'."""
    params = list(params)
    try:
        fused = {"fused": True} if params[0].device.type == "cpu" else {}
        return kind(params, lr=lr, **fused, **options)
    except (TypeError, RuntimeError):  # torch before 2.4 has no such form on a CPU
        return kind(params, lr=lr, **options)


def train(
    net: nn.Module,
    loader: Iterable[Any],
    n_steps: int,
    optimizer: torch.optim.Optimizer,
    *,
    schedule: Schedule = cosine,
    objective: Objective = cross_entropy,
    autocast_dtype: torch.dtype | None = None,
    before_step: Change | None = None,
) -> nn.Module:
    """Take `n_steps` optimiser steps over `loader`, restarted as often as needed; `net` is trained in place.

    Step t of n runs at the learning rate lr * schedule(t / n), so that a schedule ending at 0 ends with the steps
    whatever their number; the optimiser keeps its own rate. before_step: called on `net` when it has its gradients, to
    change them. Leaves `net` in training mode. float16 needs a loss scale and is not offered: bfloat16 or None (the
    weights' own precision).
    """
    device = device_of(net)
    net.train().to(memory_format=memory_format(device))
    base = [group["lr"] for group in optimizer.param_groups]
    for step, batch in zip(range(n_steps), cycle(loader, net)):  # noqa: B905 - the loader is endless
        images, labels = unpack(batch, device)
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * schedule(step / n_steps)
        with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
            loss = _loss_of(objective, net, images, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if before_step is not None:
            before_step(net)
        optimizer.step()
    for group, lr in zip(optimizer.param_groups, base, strict=True):
        group["lr"] = lr
    return net


def _loss_of(objective: Objective, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    try:
        return objective(net, images, labels)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "a batch of one image, and BatchNorm cannot train on maps of one pixel with it: give the loader a larger "
            "batch size, or its data set more than one image"
        ) from error


def fine_tune(
    net: nn.Module,
    loader: Iterable[Any],
    n_steps: int,
    *,
    lr: float = 0.001,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Schedule = cosine,
    objective: Objective = cross_entropy,
    bfloat16: bool = False,
    before_step: Change | None = None,
) -> nn.Module:
    """Train on with SGD. On the retain set with the default objective: a method of its own, and the recovery step
    after every impair step (Castaldo et al. 2023, section 2.1).

    lr, momentum, weight_decay and bfloat16 are what methods pass on as `**recovery`.
    bfloat16: forward and backward pass in bfloat16 where autocast allows it; other bits, and faster only where the
    processor multiplies it in hardware (`native_bfloat16`).
    """
    optimizer = fused(torch.optim.SGD, net.parameters(), lr, momentum=momentum, weight_decay=weight_decay)
    return train(
        net,
        loader,
        n_steps,
        optimizer,
        schedule=schedule,
        objective=objective,
        autocast_dtype=torch.bfloat16 if bfloat16 else None,
        before_step=before_step,
    )
