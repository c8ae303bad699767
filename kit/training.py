"""The one training loop: steps known in advance, a schedule that ends with them, the loss as an argument."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kit.competition import ExampleDataset, TensorLoader
from kit.device import device_of
from kit.errors import InputError

Schedule = Callable[[float], float]
Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
Change = Callable[[nn.Module], None]


def constant(progress: float) -> float:
    """Factor 1 throughout."""
    return 1.0


def cosine(progress: float) -> float:
    """From 1 at progress 0 to 0 at progress 1 along half a cosine (Loshchilov and Hutter 2017, eq. 5, one cycle)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def cosine_to(least: float) -> Schedule:
    """From 1 down to `least` along half a cosine."""
    return lambda progress: least + (1 - least) * cosine(progress)


def per_epoch(*factors: float) -> Schedule:
    """One factor after the other, each for an equal share of the steps.

    >>> [per_epoch(1.0, 0.5, 0.1)(step / 6) for step in range(6)]
    [1.0, 1.0, 0.5, 0.5, 0.1, 0.1]
    """
    return lambda progress: factors[min(int(progress * len(factors) + 1e-6), len(factors) - 1)]


def cosine_per_epoch(n_epochs: int) -> Schedule:
    """The cosine as torch's `CosineAnnealingLR(T_max=n_epochs)` takes it when it is asked once an epoch."""
    return per_epoch(*(cosine(epoch / n_epochs) for epoch in range(n_epochs)))


def part(schedule: Schedule, start: float, end: float) -> Schedule:
    """The part of a schedule from progress `start` to `end`: for training in several calls with one optimiser."""
    return lambda progress: schedule(start + (end - start) * progress)


def one_cycle(warm_up: float) -> Schedule:
    """From 0 to 1 over the share `warm_up` of the steps, then linearly back to 0."""
    return lambda progress: progress / warm_up if progress < warm_up else (1 - progress) / (1 - warm_up)


def cross_entropy(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the batch."""
    return F.cross_entropy(net(images).float(), labels)


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
    return copy.deepcopy(net).eval().requires_grad_(False).to(memory_format=torch.channels_last)


def unpack(batch: Mapping[str, Any] | Iterable[Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Images, float32 (n, C, H, W) in channels-last order, and labels, int64 (n,), of a dict or tuple batch."""
    images, labels = (batch["image"], batch["age_group"]) if isinstance(batch, Mapping) else tuple(batch)[:2]
    images = images.to(device, torch.float32, non_blocking=True)
    return images.contiguous(memory_format=torch.channels_last), labels.to(device, non_blocking=True)


def cycle(loader: Iterable[Any], trained: nn.Module | None = None) -> Iterator[Any]:
    """Batches of `loader`, begun anew (and reshuffled) whenever it ends.

    trained: the net that they train. Where it has BatchNorm, which fails on maps of one pixel as of a ResNet-18 on
    32x32 images, a batch of one image is passed over if the loader has larger ones.
    """
    modules = () if trained is None else trained.modules()
    least, largest = 1 + any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules), 0
    while True:
        empty = True
        for batch in loader:
            empty = False
            n_images = len(batch["age_group"] if isinstance(batch, Mapping) else tuple(batch)[1])
            largest = max(largest, n_images)
            if n_images >= min(least, largest):
                yield batch
        if empty:
            raise InputError("a data loader gave no batch: the data set behind it is empty")


def rebatched(loader: DataLoader, batch_size: int) -> DataLoader:
    """A shuffled loader of the same data set in batches of another size."""
    kind = TensorLoader if isinstance(loader, TensorLoader) else DataLoader
    return kind(loader.dataset, batch_size=batch_size, shuffle=True, collate_fn=loader.collate_fn)


def interleaved(*sources: Any) -> Iterator[Any]:
    """Endless batches: in each epoch every batch of every source, loader or list, in random order."""
    while True:
        turns = torch.tensor([turn for turn, source in enumerate(sources) for _ in range(len(source))])
        begun: dict[int, Iterator[Any]] = {}
        for turn in turns[torch.randperm(len(turns))].tolist():
            if turn not in begun:
                begun[turn] = iter(sources[turn])
            yield next(begun[turn])


@torch.no_grad()
def relabelled(
    loader: Iterable[Any], device: torch.device, relabel: Callable[[Tensor, Tensor], Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """The loader's batches, read once, with relabel(images, labels) in place of their labels."""
    batches = [unpack(batch, device) for batch in loader]
    return [(images, relabel(images, labels)) for images, labels in batches]


def other_labels(labels: Tensor, n_classes: int) -> Tensor:
    """For each label one of the others at random, drawn on the CPU."""
    return (labels + torch.randint(1, n_classes, labels.shape).to(labels)) % n_classes


def class_counts(loader: DataLoader) -> Tensor:
    """Examples of each class in a loader's data set, int64 (largest label + 1,)."""
    if isinstance(loader.dataset, ExampleDataset):
        return torch.bincount(loader.dataset.labels)
    # A generator of its own: reading the labels must not change what the method draws.
    plain = DataLoader(loader.dataset, 256, collate_fn=loader.collate_fn, generator=torch.Generator())
    return torch.bincount(torch.cat([unpack(batch, torch.device("cpu"))[1] for batch in plain]))


def native_bfloat16(device: torch.device) -> torch.dtype | None:
    """bfloat16 where a CPU multiplies it in hardware (AVX512-BF16, AMX), which trains small nets twice as fast; None
    elsewhere: emulated, it takes more than twice as long as float32."""
    if device.type != "cpu":
        return None
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    return torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else None


def sgd(params: Iterable[Tensor], lr: float, **options: Any) -> torch.optim.SGD:
    """SGD in its fused form where this torch has one for the parameters' device: the same update, fewer passes."""
    params = list(params)
    try:
        return torch.optim.SGD(params, lr=lr, fused=True, **options)
    except (TypeError, RuntimeError):  # torch before 2.4 knows no fused SGD on this device
        return torch.optim.SGD(params, lr=lr, **options)


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
    net.train().to(memory_format=torch.channels_last)
    device = device_of(net)
    base = [group["lr"] for group in optimizer.param_groups]
    for step, batch in zip(range(n_steps), cycle(loader, net)):  # noqa: B905 - the loader is endless
        images, labels = unpack(batch, device)
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * schedule(step / n_steps)
        with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
            loss = objective(net, images, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if before_step is not None:
            before_step(net)
        optimizer.step()
    for group, lr in zip(optimizer.param_groups, base, strict=True):
        group["lr"] = lr
    return net


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
    optimizer = sgd(net.parameters(), lr, momentum=momentum, weight_decay=weight_decay)
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


@torch.no_grad()
def predict(net: nn.Module, batches: Iterable[Any], *, autocast_dtype: torch.dtype | None = None) -> Tensor:
    """Logits in evaluation mode, float32 (n_examples, n_classes) on the CPU, in the loader's order."""
    net.eval()
    device = device_of(net)
    with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        return torch.cat([net(unpack(batch, device)[0]).float().cpu() for batch in batches])
