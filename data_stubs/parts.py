"""A part of a data set (images, labels, ids, groups) and a source (training, validation and test part)."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import random_split

from kit.errors import InputError

HELD_OUT_SEED = 42  # the starting kit's seed for halving CIFAR-10's held-out images


@dataclass(frozen=True)
class Part:
    """n_examples labelled images. Arrays may be memory maps and must not be written to.

    images: uint8 (n_examples, channels, height, width); labels: int64 (n_examples,), 0 or greater;
    ids: strings (n_examples,), unique; groups: int64 (n_examples,), the subject (person) an image belongs to, by
    default each image its own. Raises InputError for other shapes or types, for negative labels, for no example.
    """

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    groups: np.ndarray | None = None

    def __post_init__(self):
        if self.groups is None:
            object.__setattr__(self, "groups", np.arange(len(self.labels), dtype=np.int64))
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            found = f"{self.images.dtype} {self.images.shape}"
            raise InputError(f"images are {found}: expected uint8 (n_examples, channels, height, width)")
        if len(self.images) == 0:
            raise InputError("a part has no images: give at least one example")
        for name, values, kind in (
            ("labels", self.labels, "int64"),
            ("ids", self.ids, "str"),
            ("groups", self.groups, "int64"),
        ):
            fits = values.dtype.kind == "U" if kind == "str" else values.dtype == np.int64
            if values.shape != (len(self.images),) or not fits:
                found = f"{values.dtype} {values.shape}"
                raise InputError(f"{name} are {found}: expected {kind} ({len(self.images)},), one for each image")
        if self.labels.min() < 0:
            raise InputError(f"labels hold {self.labels.min()}: expected class numbers from 0")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: np.ndarray) -> "Part":
        """The examples of an integer index array, in its order. The arrays are copied."""
        return Part(self.images[index], self.labels[index], self.ids[index], self.groups[index])


@dataclass(frozen=True)
class Source:
    """A data set before anything is to be forgotten. Raises InputError where its parts do not fit together.

    forget: rows of the training part to forget, for the policy `given`, where the source itself names them.
    """

    name: str
    train: Part
    validation: Part
    test: Part
    class_names: tuple[str, ...]
    forget: np.ndarray | None = None

    def __post_init__(self):
        check_parts([self.train, self.validation, self.test], len(self.class_names), self.name)


def check_parts(parts: Iterable[Part], n_classes: int, name: str) -> None:
    """Raise InputError unless parts share one image shape, have labels below n_classes and unique ids."""
    parts = list(parts)
    if len(shapes := {part.images.shape[1:] for part in parts}) > 1:
        raise InputError(f"{name}: parts have images of {sorted(shapes)}: all must have the same shape")
    if (largest := max(int(part.labels.max()) for part in parts)) >= n_classes:
        raise InputError(f"{name}: labels go up to {largest}: there are {n_classes} classes, numbered from 0")
    seen: set[str] = set()
    for part in parts:
        for image_id in part.ids.tolist():
            if image_id in seen:
                raise InputError(f"{name}: image id {image_id!r} occurs twice: ids must be unique")
            seen.add(image_id)


def concatenate(first: Part, second: Part) -> Part:
    """The examples of `first`, then those of `second`."""
    pairs = ((getattr(first, name), getattr(second, name)) for name in ("images", "labels", "ids", "groups"))
    return Part(*(np.concatenate(pair) for pair in pairs))


def halve_held_out(held_out: Part) -> tuple[Part, Part]:
    """Held-out images -> (validation, test), split at random as the starting kit splits those of CIFAR-10.

    The first half of `random_split` is the test part, the second the validation part; both keep its order.
    """
    if len(held_out) < 2:
        raise InputError("there is 1 held-out image: give at least 2, half for validation and half for test")
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    test, validation = random_split(range(len(held_out)), [0.5, 0.5], generator=generator)
    return held_out.take(np.array(validation.indices)), held_out.take(np.array(test.indices))


def stratified_subset(labels: np.ndarray, n_examples: int, rng: np.random.Generator) -> np.ndarray:
    """A random subset with the classes' shares kept: sorted index array (n_examples,) into `labels`.

    Shares are rounded to the largest remainder; every class that occurs keeps an example where n_examples allows.
    """
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * n_examples / len(labels)
    quota = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(quota - exact, kind="stable")
    quota[by_remainder[: n_examples - quota.sum()]] += 1
    if n_examples >= len(classes):
        while (quota == 0).any():
            quota[quota.argmax()] -= 1
            quota[quota.argmin()] += 1
    chosen = [
        rng.choice(np.flatnonzero(labels == label), size, replace=False)
        for label, size in zip(classes, quota, strict=True)
    ]
    return np.sort(np.concatenate(chosen))
