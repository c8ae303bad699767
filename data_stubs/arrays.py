"""Data that is in memory already: arrays, a torch Dataset, or a file of arrays, to a source or to splits."""

import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from data_stubs.parts import HELD_OUT_SEED, Part, Source, halve_held_out, stratified_subset
from data_stubs.splits import GIVEN, Splits, split_forget
from kit.errors import InputError, first_line, printable

HELD_OUT_PART = 5  # one image in so many is held out where no test images are given
FORGET = "random:0.02"
_MEMBERS = ("images", "labels", "test_images", "test_labels", "groups", "forget", "class_names")
_LARGEST_BYTES = 1 << 34


def from_arrays(
    images: Any,
    labels: Any,
    *,
    forget: str | Sequence[int] | np.ndarray = FORGET,
    test: tuple[Any, Any] | None = None,
    groups: Any = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    name: str = "arrays",
) -> Splits:
    """Retain, forget, validation and test part of images in memory.

    images: (n_examples, channels, height, width), or channels last, or without channels; uint8 0..255, or numbers
    within 0..1, which are scaled. labels: (n_examples,), whole numbers from 0. forget: a policy as `split_forget` takes
    it, or the rows (integers, or a mask) of `images` to forget. test: images and labels held out, halved into
    validation and test part; by default a fifth of the images that are not to be forgotten by number. groups:
    (n_examples,), the subject of each image. seed: of the policy's draw. Raises InputError for whatever does not fit.

    >>> images, labels = np.zeros((40, 8, 8, 3), np.uint8), np.arange(40) % 4
    >>> splits = from_arrays(images, labels, forget=[0, 1, 2])
    >>> {part: len(getattr(splits, part)) for part in ("retain", "forget", "validation", "test")}
    {'retain': 30, 'forget': 3, 'validation': 3, 'test': 4}
    """
    by_number = not isinstance(forget, str)
    rows = forget if by_number else None
    source = source_of(images, labels, forget=rows, test=test, groups=groups, class_names=class_names, name=name)
    return split_forget(source, GIVEN if by_number else forget, seed)


def from_dataset(
    dataset: Dataset,
    *,
    forget: str | Sequence[int] | np.ndarray = FORGET,
    test: Dataset | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    name: str = "",
) -> Splits:
    """As `from_arrays`, of a torch Dataset whose items are an image (PIL, array or tensor) and a label first, or a
    dict with `image` and `label`. Images of one size, without normalisation and random augmentation.

    class_names: by default the data set's `classes`, where it has them.
    """
    images, labels = read_dataset(dataset, "the data set")
    held_out = None if test is None else read_dataset(test, "the test data set")
    names = class_names if class_names is not None else getattr(dataset, "classes", None)
    name = name or type(dataset).__name__
    return from_arrays(images, labels, forget=forget, test=held_out, class_names=names, seed=seed, name=name)


def source_of(
    images: Any,
    labels: Any,
    *,
    forget: Sequence[int] | np.ndarray | None = None,
    test: tuple[Any, Any] | None = None,
    groups: Any = None,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
) -> Source:
    """The arguments of `from_arrays` as a source; its policy `given` forgets the rows `forget`."""
    images, labels = as_images(images, name), as_labels(labels, f"{name}: labels")
    n_examples = len(images)
    if len(labels) != n_examples:
        raise InputError(f"{name}: {n_examples} images and {len(labels)} labels: give one label for each image")
    named = forget is not None
    chosen = _rows(forget, n_examples, name) if named else np.array([], dtype=np.int64)
    groups = np.arange(n_examples, dtype=np.int64) if groups is None else as_labels(groups, f"{name}: groups")
    if groups.shape != (n_examples,):
        raise InputError(f"{name}: {n_examples} images and {len(groups)} groups: give the subject of each image")
    everything = Part(images, labels, _ids("image", n_examples), groups)
    if test is None:
        free = np.setdiff1d(np.arange(n_examples), chosen)
        if (n_held_out := len(free) // HELD_OUT_PART) < 2:
            raise InputError(f"{name}: {len(free)} images are too few to hold out a fifth: give test images")
        # What stays is drawn: a class of one image is to be trained on.
        rng = np.random.default_rng(HELD_OUT_SEED)
        stay = free[stratified_subset(labels[free], len(free) - n_held_out, rng)]
        held = np.setdiff1d(free, stay)
        kept = np.setdiff1d(np.arange(n_examples), held)
        held_out, train = everything.take(held), everything.take(kept)
        chosen = np.searchsorted(kept, chosen)
    else:
        test_images, test_labels = as_images(test[0], f"{name}, test"), as_labels(test[1], f"{name}: test labels")
        if len(test_images) != len(test_labels):
            raise InputError(f"{name}: {len(test_images)} test images and {len(test_labels)} labels: one for each")
        first = int(groups.max()) + 1
        their_groups = first + np.arange(len(test_labels), dtype=np.int64)
        train, held_out = everything, Part(test_images, test_labels, _ids("test", len(test_labels)), their_groups)
    largest = int(max(train.labels.max(), held_out.labels.max()))
    names = range(largest + 1) if class_names is None else class_names
    if isinstance(names, str) or not np.iterable(names):
        raise InputError(f"{name}: class names are {names!r}: expected the name of each class, as in ['cat', 'dog']")
    return Source(name, train, *halve_held_out(held_out), tuple(map(str, names)), chosen if named else None)


def from_file(path: Path) -> Source:
    """A .npz with images and labels, and if wanted test_images and test_labels, groups, class_names and forget: the
    rows to forget, for the policy `given`."""
    path = Path(path).expanduser()
    try:
        with zipfile.ZipFile(path) as packed:
            if sum(info.file_size for info in packed.infolist()) > _LARGEST_BYTES:
                raise ValueError("it unpacks to more than 16 GB")
        with np.load(path, allow_pickle=False) as file:
            arrays = {member: file[member] for member in _MEMBERS if member in file.files}
            held = ", ".join(file.files)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file: give a .npz with the arrays images and labels") from None
    except Exception as error:  # numpy and zipfile raise many kinds for a broken file
        raise InputError(f"{path}: is no readable .npz of arrays ({first_line(error)})") from error
    if missing := [member for member in ("images", "labels") if member not in arrays]:
        raise InputError(f"{path}: has no array {missing[0]}: it holds {held}")
    if ("test_images" in arrays) != ("test_labels" in arrays):
        raise InputError(f"{path}: has one of test_images and test_labels: give both or neither")
    test = (arrays["test_images"], arrays["test_labels"]) if "test_images" in arrays else None
    options = {member: arrays.get(member) for member in ("forget", "groups", "class_names")}
    return source_of(arrays["images"], arrays["labels"], test=test, name=path.stem, **options)


def read_dataset(dataset: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of all items of a torch Dataset. InputError names the first item that cannot be used."""
    try:
        n_examples = None if isinstance(dataset, IterableDataset) else len(dataset)
    except Exception:  # whatever a foreign data set raises
        n_examples = None
    if n_examples is None:
        raise InputError(f"{what}: {type(dataset).__name__} has no items by number: give it __len__ and __getitem__")
    images, labels = [], []
    for row in range(n_examples):
        try:
            item = dataset[row]
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"{what}: item {row} cannot be read ({reason}): mend its __getitem__") from error
        if isinstance(item, Mapping):
            image, label = item.get("image"), item.get("label", item.get("age_group"))
            if image is None or label is None:
                absent, held = "image" if image is None else "label", ", ".join(map(str, item))
                raise InputError(f"{what}: item {row} has no {absent}: it holds {held or 'nothing'}")
        else:
            if not isinstance(item, tuple | list) or len(item) < 2:
                raise InputError(f"{what}: item {row} is of type {type(item).__name__}: expected (image, label)")
            image, label = item[:2]
        image, label = _array(image, f"{what}: item {row}: image"), _array(label, f"{what}: item {row}: label")
        if label.size != 1 or not _whole(label):
            found = printable(repr(label.item()), 80) if label.size == 1 else f"{label.dtype} {label.shape}"
            raise InputError(f"{what}: item {row} has the label {found}: expected the number of its class, from 0")
        if images and image.shape != images[0].shape:
            sizes = f"{_shape(images[0])} and item {row} of {_shape(image)}"
            raise InputError(
                f"{what}: has images of {sizes}: bring all to one size, as with transforms.Resize((32, 32))"
            )
        images.append(image)
        labels.append(int(label.item()))
    if not images:
        raise InputError(f"{what}: has no examples")
    return np.stack(images), np.asarray(labels)


def as_images(images: Any, name: str) -> np.ndarray:
    """uint8 (n_examples, channels, height, width) of what `from_arrays` takes."""
    images = _array(images, f"{name}: images")
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4:
        raise InputError(f"{name}: images are {images.shape}: expected (n_examples, channels, height, width)")
    if images.shape[-1] in (1, 3, 4) and images.shape[1] not in (1, 3, 4):
        images = images.transpose(0, 3, 1, 2)
    if images.dtype == np.uint8 or images.size == 0:
        return np.ascontiguousarray(images, dtype=np.uint8)
    if images.dtype.kind not in "iuf":
        raise InputError(f"{name}: images are {images.dtype}: expected uint8, or numbers within 0..1")
    low, high = float(images.min()), float(images.max())
    if images.dtype.kind in "iu" and low >= 0 and high <= 255:
        return np.ascontiguousarray(images, dtype=np.uint8)
    if images.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.rint(images * 255).astype(np.uint8)
    raise InputError(
        f"{name}: images are {images.dtype} from {low:.3g} to {high:.3g}: give uint8, or numbers within 0..1, without "
        "normalisation (that belongs into the net)"
    )


def as_labels(labels: Any, what: str) -> np.ndarray:
    """int64 (n_examples,)"""
    labels = _array(labels, what)
    if labels.ndim != 1 or not _whole(labels):
        raise InputError(f"{what} are {labels.dtype} {labels.shape}: expected whole numbers, one for each image")
    return labels.astype(np.int64)


def _array(values: Any, what: str) -> np.ndarray:
    """An array of what a user gives: tensors on any device, with gradients or not, or a list of such."""
    try:
        if isinstance(values, list | tuple):
            return np.asarray([_plain(value) for value in values])
        return np.asarray(_plain(values))
    except Exception as error:  # numpy and torch raise several kinds
        shapes = []
        with suppress(Exception):
            shapes = [np.shape(_plain(value)) for value in values]
        other = next((row for row, shape in enumerate(shapes) if shape != shapes[0]), None)
        if other is None:
            raise InputError(f"{what} cannot be read as an array ({first_line(error)})") from error
        raise InputError(
            f"{what} are of several sizes, {shapes[0]} and, item {other}, {shapes[other]}: bring all to one size"
        ) from error


def _whole(values: np.ndarray) -> bool:
    return values.dtype.kind in "biuf" and bool((np.isfinite(values) & (values == np.rint(values))).all())


def _plain(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value


def _rows(forget: Any, n_examples: int, name: str) -> np.ndarray:
    rows = np.asarray(forget)
    if rows.dtype == bool and rows.shape == (n_examples,):
        return np.flatnonzero(rows)
    if rows.ndim != 1 or (rows.dtype.kind not in "iu" and rows.size):
        raise InputError(
            f"{name}: forget is {rows.dtype} {rows.shape}: expected row numbers, or one bool for each image"
        )
    rows = rows.astype(np.int64)
    if len(outside := rows[(rows < 0) | (rows >= n_examples)]):
        raise InputError(f"{name}: forget holds row {outside[0]}: there are {n_examples} images, numbered from 0")
    if len(np.unique(rows)) < len(rows):
        raise InputError(f"{name}: forget names a row twice: name each once")
    return rows


def _ids(what: str, n_examples: int) -> np.ndarray:
    return np.array([f"{what}-{row:06d}" for row in range(n_examples)])


def _shape(image: np.ndarray) -> str:
    return " x ".join(map(str, image.shape))
