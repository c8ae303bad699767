"""Stand-ins for the competition's hidden data: any labelled images -> retain, forget, validation and test part."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from data_stubs import arrays
from data_stubs.arrays import from_arrays, from_dataset
from data_stubs.parts import Part, Source, stratified_subset
from data_stubs.splits import Splits, fingerprint, flip_labels, split_forget
from kit.errors import InputError
from kit.tools.own import call_own, is_file_spec, own_function, read_spec

__all__ = [
    "SOURCES",
    "Part",
    "Source",
    "Splits",
    "fingerprint",
    "from_arrays",
    "from_dataset",
    "load",
    "load_source",
    "split_forget",
]

SOURCES = (
    "cifar10",
    "gtsrb[:super|:ten]",
    "image-folder:PATH",
    "arrays:FILE.npz",
    "digits",
    "synthetic",
    "file.py:function",
)
DEFAULT_FORGET = (0.05, 500)  # a share of the training images, and the most
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
    return load_by_default(
        source,
        forget=forget,
        n_train=n_train,
        seed=seed,
        data_root=data_root,
        cache_dir=cache_dir,
        progress=progress,
    )[0]


def load_by_default(
    source: str, *, forget: str | None = None, n_train: int | None = None, seed: int = 0, **where: Any
) -> tuple[Splits, str]:
    """As `load`, and the forget policy beside it; where none is given the default one for so many training images."""
    source, noise = noise_of(source)
    loaded = load_source(source, n_train=n_train, seed=seed, **where)
    forget = default_forget(len(loaded.train)) if forget is None else forget
    splits = split_forget(loaded, forget, seed)
    if noise is not None:
        splits = flip_labels(splits, noise, np.random.default_rng([seed, NOISE_STREAM]))
    return splits, forget


def default_forget(n_train: int) -> str:
    """The policy where none is chosen: 5% of the training images, at most 500.

    >>> default_forget(50_000), default_forget(160)
    ('random:500', 'random:0.05')
    """
    share, most = DEFAULT_FORGET
    return f"random:{most}" if share * n_train >= most else f"random:{share}"


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

        size = image_folder.size_of(name)
        whole = image_folder.load_source(Path(path).expanduser(), cache_dir, size=size, progress=progress)
    elif name == "arrays" and path:
        whole = arrays.from_file(Path(path))
    elif is_file_spec(source):
        whole = _own_source(source)
    else:
        names = [name.partition("[")[0].partition(":")[0] for name in SOURCES]
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        if Path(source).expanduser().exists():
            kind = "arrays" if source.endswith(".npz") else "image-folder"
            hint = f"a path is written {kind}:{source}; "
        raise InputError(f"data source {source!r} is unknown: {hint}choose from {', '.join(SOURCES)}")
    return whole if n_train is None else _subset(whole, n_train, seed)


def _own_source(source: str) -> Source:
    """What a user's function gives: a Source, or images and labels as `from_arrays` takes them, or a torch Dataset. It
    is called without arguments, or with what is written behind its name: `file.py:function:ARGUMENT`."""
    spec = read_spec(source, "data source")
    function = own_function(spec, "data source")
    made = call_own(spec, "data source", function, *([] if spec.argument is None else [spec.argument]))
    if isinstance(made, Source):
        return made
    try:
        if isinstance(made, Dataset):
            images, labels = arrays.read_dataset(made, spec.function)
            return arrays.source_of(images, labels, class_names=getattr(made, "classes", None), name=spec.function)
        if isinstance(made, tuple) and len(made) == 2:
            return arrays.source_of(*made, name=spec.function)
    except InputError as error:  # it begins with the function's name, or with no name
        raise InputError(f"data source {spec}: {str(error).removeprefix(f'{spec.function}: ')}") from error
    found = type(made).__name__
    raise InputError(f"data source {spec}: gave {found}: expected a Source, (images, labels) or a torch Dataset")


def forget_identity(policy: str) -> str:
    """What a policy is called where the examples that it chose are known: of a user's file neither place nor text."""
    return str(read_spec(policy, "forget policy")._replace(path=Path("file.py"))) if is_file_spec(policy) else policy


def _subset(source: Source, n_train: int, seed: int) -> Source:
    n_present = len(np.unique(source.train.labels))
    if not n_present <= n_train <= len(source.train):
        raise InputError(
            f"n_train is {n_train}: {source.name} has {len(source.train)} training images of {n_present} classes: "
            f"choose from {n_present} to {len(source.train)}"
        )
    index = stratified_subset(source.train.labels, n_train, np.random.default_rng([seed, SUBSET_STREAM]))
    return Source(source.name, source.train.take(index), source.validation, source.test, source.class_names)
