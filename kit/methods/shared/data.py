"""Loaders in other sizes and orders, and other labels."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kit.competition import ExampleDataset, TensorLoader
from kit.training import unpack


def rebatched(loader: DataLoader, batch_size: int) -> DataLoader:
    """A shuffled loader of the same data set in batches of another size."""
    kind = TensorLoader if isinstance(loader, TensorLoader) else DataLoader
    return kind(loader.dataset, batch_size=batch_size, shuffle=True, collate_fn=loader.collate_fn)


class interleaved:
    """In each iteration every batch of every source, loader or list, in random order."""

    def __init__(self, *sources: Any):
        self.sources = sources

    def __iter__(self) -> Iterator[Any]:
        turns = torch.tensor([turn for turn, source in enumerate(self.sources) for _ in range(len(source))])
        begun: dict[int, Iterator[Any]] = {}
        for turn in turns[torch.randperm(len(turns))].tolist():
            if turn not in begun:
                begun[turn] = iter(self.sources[turn])
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
