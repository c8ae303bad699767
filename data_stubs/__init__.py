"""Stand-ins for the competition's hidden data: any labelled images -> retain, forget, validation and test part."""

from pathlib import Path

import numpy as np

from data_stubs.parts import Part, Source, stratified_subset
from data_stubs.splits import Splits, fingerprint, flip_labels, split_forget
from kit.errors import InputError

__all__ = ["SOURCES", "Part", "Source", "Splits", "fingerprint", "load", "load_source", "split_forget"]

SOURCES = ("cifar10", "gtsrb[:super|:ten]", "image-folder:PATH", "digits", "synthetic")
SUBSET_STREAM = 1  # keeps the draw of n_train images independent of the forget policy's draw with the same seed
NOISE_STREAM = 2  # and so the draw of the flipped labels


def load(
    source: str,
    *,
    forget: str,
    n_train: int | None = None,
    seed: int = 0,
    data_root: Path | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> Splits:
    """Load a source and split its training part by a forget policy.

    source: one of SOURCES, with `:noise=0.04` behind it to flip the labels of that share of the images; forget: see
    `split_forget`; n_train: use that many training images, see `load_source`; seed: of all draws; data_root: folder of
    CIFAR-10 or GTSRB; cache_dir: folder for decoded images; progress: show a bar.
    Raises InputError, in one line, for whatever a user can get wrong.
    """
    if n_train is not None and forget.partition(":")[0] == "indices":
        raise InputError("forget policy indices counts in the whole training set: leave out n_train")
    source, noise = noise_of(source)
    loaded = load_source(
        source, n_train=n_train, seed=seed, data_root=data_root, cache_dir=cache_dir, progress=progress
    )
    splits = split_forget(loaded, forget, seed)
    return splits if noise is None else flip_labels(splits, noise, np.random.default_rng([seed, NOISE_STREAM]))


def noise_of(source: str) -> tuple[str, float | None]:
    """The source without its `:noise=SHARE`, and that share, None where it has none.

    >>> noise_of("gtsrb:super:noise=0.04")
    ('gtsrb:super', 0.04)
    """
    name, mark, text = source.rpartition(":noise=")
    if not mark:
        return source, None
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise InputError(f"data source {source!r}: noise {text!r} is no share of the labels: write :noise=0.04")
    return name, share


def load_source(
    source: str,
    *,
    n_train: int | None = None,
    seed: int = 0,
    data_root: Path | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> Source:
    """Load a source. With n_train, a random subset of the training images with the classes' shares kept.

    `synthetic` makes n_train images instead of drawing them; its images do not depend on the seed, as those of real
    data do not: a seed decides what is drawn from the data.
    """
    if seed < 0:
        raise InputError(f"seed is {seed}: choose 0 or more")
    name, _, path = source.partition(":")
    # Imports are local so that no source costs the packages of the others.
    if source == "synthetic":
        from data_stubs import synthetic

        return synthetic.generate() if n_train is None else synthetic.generate(n_train)
    if source == "cifar10":
        from data_stubs import cifar10

        whole = cifar10.load_source(data_root)
    elif name == "gtsrb":
        from data_stubs import gtsrb

        whole = gtsrb.load_source(path, data_root, cache_dir, progress=progress)
    elif source == "digits":
        from data_stubs import digits

        whole = digits.load_source()
    elif name.partition("@")[0] == "image-folder" and path:
        from data_stubs import image_folder

        whole = image_folder.load_source(Path(path), cache_dir, size=image_folder.size_of(name), progress=progress)
    else:
        raise InputError(f"data source {source!r} is unknown: choose from {', '.join(SOURCES)}")
    return whole if n_train is None else _subset(whole, n_train, seed)


def _subset(source: Source, n_train: int, seed: int) -> Source:
    n_present = len(np.unique(source.train.labels))
    if not n_present <= n_train <= len(source.train):
        raise InputError(
            f"n_train is {n_train}: {source.name} has {len(source.train)} training images of {n_present} classes: "
            f"choose from {n_present} to {len(source.train)}"
        )
    index = stratified_subset(source.train.labels, n_train, np.random.default_rng([seed, SUBSET_STREAM]))
    return Source(source.name, source.train.take(index), source.validation, source.test, source.class_names)
