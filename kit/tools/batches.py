"""Pairs (images, labels) instead of the competition's dicts, for functions written for tuple batches (starting kit).

Above a function `@takes_pairs` says so; of a participant's file it is found out: `EitherStyle` tries both once.
"""

import copy
import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from kit.methods import Method
from kit.seeds import seed_everything

_OTHER_STYLE = (ValueError, TypeError, KeyError, IndexError, AttributeError)  # what reading a batch wrongly raises


class PairDataset(Dataset):
    """A data set of dicts as one of pairs: image, float32 (3, height, width) with values 0..255, and label."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        return (item["image"], item["age_group"]) if isinstance(item, Mapping) else item


def pairs(loader: DataLoader) -> DataLoader:
    """A shuffled loader of the same examples in the same order under the same seed, whose batches are pairs."""
    return DataLoader(PairDataset(loader.dataset), batch_size=loader.batch_size, shuffle=True)


def takes_pairs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of an unlearning function that reads its batches as `for images, labels in loader`."""

    @functools.wraps(function)
    def with_pairs(net: nn.Module, *loaders: DataLoader, **told: Any) -> Any:
        return function(net, *map(pairs, loaders), **told)

    return with_pairs


class EitherStyle:
    """A function that is given dict batches; where it fails on them and does not on pairs, pairs from then on."""

    def __init__(self, function: Callable[..., Any]):
        functools.update_wrapper(self, function)
        self.function, self.chosen = function, None
        self.__name__ = getattr(function, "__name__", type(function).__name__)  # partial functions have none

    def __call__(self, net: nn.Module, *loaders: DataLoader, **told: Any) -> nn.Module:
        if self.chosen is not None:
            return self.chosen(net, *loaders, **told)
        tried = copy.deepcopy(net)
        try:
            result, chosen = self.function(tried, *loaders, **told), self.function
        except _OTHER_STYLE as error:
            seed_everything(torch.initial_seed())  # the failed attempt drew from it
            tried, chosen = copy.deepcopy(net), takes_pairs(self.function)
            try:
                result = chosen(tried, *loaders, **told)
            except _OTHER_STYLE:
                raise error from None
            advice = "for a notebook of it: from kit.tools.batches import takes_pairs, and @takes_pairs above it"
            print(f"{self.__name__} reads its batches as tuples: it is given pairs; {advice}", file=sys.stderr)
        self.chosen = chosen
        return result if isinstance(result, nn.Module) else tried


class FileMethod(Method):
    """A method of a participant's file, which is called in the style that it is written in, in every process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _adapted_again, super().__reduce__()


def _adapted_again(read: Callable[..., Method], arguments: tuple[Any, ...]) -> Method:
    return adapted(read(*arguments))


def adapted(method: Method) -> Method:
    """`method` as one that may read dicts or pairs; unchanged where it takes a plan, as the kit's own do."""
    if method.anytime:
        return method
    return FileMethod(**{**vars(method), "function": EitherStyle(method.function)})
