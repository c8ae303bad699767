"""Forget policies: which training examples are to be forgotten.

A policy is written NAME:ARGUMENT. Each function takes the source, the argument (None where nothing was written) and a
random generator, and returns the source (which `competition` makes imbalanced) and an integer index array into its
training part, in any order.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from data_stubs.parts import Part, Source
from kit.errors import InputError
from kit.tools.own import FileSpec, call_own, own_function

# The competition's data as its organisers describe it: a forget set of about 2% of the training set, only from the
# first two classes and mostly class 0; class 0 dominates all splits. The exact figures are hidden: these are ours.
COMPETITION_SHARE = 0.02
COMPETITION_CLASS_0_SHARE = 0.8
CLASS_SIZE_RATIO = 0.7  # class k keeps 0.7**k as many examples as class 0
MAX_SUBJECT_IMAGES = 8

Choice = tuple[Source, np.ndarray]
Policy = Callable[[Source, str | None, np.random.Generator], Choice]


def random(source: Source, argument: str | None, rng: np.random.Generator) -> Choice:
    """`random:500` (a number of examples) or `random:0.02` (a share): uniformly without replacement."""
    n_train = len(source.train)
    amount = _amount("random", argument, n_train, "examples")
    n_forget = amount if isinstance(amount, int) else round(amount * n_train)
    return source, rng.choice(n_train, n_forget, replace=False)


def classes(source: Source, argument: str | None, rng: np.random.Generator) -> Choice:
    """`class:3`, `class:0,1` or `class:cat`: every example of one or several classes, by number or name."""
    n_classes = len(source.class_names)
    labels = sorted({_class(word, source.class_names) for word in (argument or "").split(",")})
    if unknown := [label for label in labels if not 0 <= label < n_classes]:
        raise InputError(f"forget policy class: there is no class {unknown[0]}: choose from 0 to {n_classes - 1}")
    if set(labels) >= set(source.train.labels.tolist()):
        raise InputError("forget policy class: every class would be forgotten: leave one to retain")
    return source, np.flatnonzero(np.isin(source.train.labels, labels))


def _class(word: str, names: tuple[str, ...]) -> int:
    if word in names:
        return names.index(word)
    if not re.fullmatch(r"\s*-?[0-9]+\s*", word):
        close = get_close_matches(word, names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        shown = ", ".join(names[:12]) + (" ..." if len(names) > 12 else "")
        raise InputError(
            f"forget policy class: {word!r} is no class number or name: {hint}write class:3 or class:0,1; names "
            f"are {shown}"
        )
    return int(word)


def indices(source: Source, argument: str | None, rng: np.random.Generator) -> Choice:
    """`indices:PATH.npy`: an integer array into the training set, such as the starting kit's forget_idx.npy."""
    if not argument:
        raise InputError("forget policy indices: the file is missing: write indices:PATH.npy")
    path = Path(argument).expanduser()
    try:
        index = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file: give a .npy file of indices into the training set") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: is no .npy file of integers ({str(error).splitlines()[0]})") from error
    if not isinstance(index, np.ndarray) or index.ndim != 1 or index.dtype.kind not in "iu":
        found = f"{index.dtype} {index.shape}" if isinstance(index, np.ndarray) else "an archive of arrays"
        raise InputError(f"{path}: holds {found}: expected one array of integers with one dimension")
    n_train = len(source.train)
    outside = index[(index < 0) | (index >= n_train)]
    if len(outside):
        raise InputError(f"{path}: index {outside[0]} is outside the training set: it has {n_train} examples")
    values, counts = np.unique(index, return_counts=True)
    if len(repeated := values[counts > 1]):
        raise InputError(f"{path}: index {repeated[0]} occurs more than once: name each example once")
    return source, index.astype(np.int64)


def group(source: Source, argument: str | None, rng: np.random.Generator) -> Choice:
    """`group:10` (a number of subjects) or `group:0.02` (a share of the images, reached or just passed).

    Whole subjects, drawn uniformly, however many images each has.
    """
    subjects, member, sizes = np.unique(source.train.groups, return_inverse=True, return_counts=True)
    amount = _amount("group", argument, len(subjects), "subjects")
    drawn = rng.permutation(len(subjects))
    if isinstance(amount, int):
        n_subjects = amount
    else:
        n_forget = round(amount * len(source.train))
        n_subjects = int(np.searchsorted(np.cumsum(sizes[drawn]), n_forget)) + 1 if n_forget else 0
    return source, np.flatnonzero(np.isin(member, drawn[:n_subjects]))


def competition(source: Source, argument: str | None, rng: np.random.Generator) -> Choice:
    """`competition` or `competition:0.02` (a share): as in the competition, see this module's constants.

    All parts are made imbalanced first (class k keeps at most 0.7**k times the examples of class 0). A source without
    subjects gets made-up ones of 1 to 8 images of one class. Whole subjects are forgotten, only such whose images all
    lie in the first two classes.
    """
    share = COMPETITION_SHARE
    if argument is not None:
        share = _amount("competition", argument, len(source.train), "examples")
        if isinstance(share, int):
            raise InputError(f"forget policy competition: {argument!r} is no share: write competition:0.02")
    if len(source.class_names) < 2:
        raise InputError("forget policy competition: the source has 1 class: it needs at least two")
    source = _with_subjects(_imbalanced(source, rng), rng)
    train = source.train
    n_forget = round(share * len(train))
    n_class_0 = round(COMPETITION_CLASS_0_SHARE * n_forget)
    subjects, member, sizes = np.unique(train.groups, return_inverse=True, return_counts=True)
    first_class = np.full(len(subjects), len(source.class_names))
    np.minimum.at(first_class, member, train.labels)
    last_class = np.zeros(len(subjects), dtype=np.int64)
    np.maximum.at(last_class, member, train.labels)
    chosen: list[int] = []
    for label, room in ((0, n_class_0), (1, n_forget - n_class_0)):
        left = []
        for subject in rng.permutation(np.flatnonzero((first_class == label) & (last_class <= 1))):
            fits = sizes[subject] <= room
            (chosen if fits else left).append(subject)
            room -= sizes[subject] if fits else 0
        # Large subjects leave much room: one more where that comes nearer to the quota.
        chosen += [subject for subject in left if sizes[subject] < 2 * room][:1]
    return source, np.flatnonzero(np.isin(member, chosen))


def given(source: Source, argument: str | None, rng: np.random.Generator) -> Choice:
    """`given`: the examples that the source itself names, as `arrays:FILE.npz` does with an array `forget`."""
    if source.forget is None:
        raise InputError(
            f"forget policy given: {source.name} names no examples to forget, or only a sample of it is used: choose "
            f"another policy or leave out n_train"
        )
    return source, source.forget


def from_file(spec: FileSpec) -> Policy:
    """The policy that a user's function is: called as those here are, it gives the rows to forget (integers, or a
    mask), alone or after the source. A function of two parameters is called without the argument."""
    what = "forget policy"
    function = own_function(spec, what)

    def policy(source: Source, argument: str | None, rng: np.random.Generator) -> Choice:
        inputs = (source, rng) if len(inspect.signature(function).parameters) == 2 else (source, argument, rng)
        chosen = call_own(spec, what, function, *inputs)
        if isinstance(chosen, tuple) and len(chosen) == 2 and isinstance(chosen[0], Source):
            source, chosen = chosen
        rows = np.asarray(chosen)
        if rows.dtype == bool and rows.shape == (len(source.train),):
            rows = np.flatnonzero(rows)
        inside = rows.ndim == 1 and rows.dtype.kind in "iu" and ((rows >= 0) & (rows < len(source.train))).all()
        if rows.size and not (inside and len(np.unique(rows)) == len(rows)):
            found = f"{rows.dtype} {rows.shape}"
            raise InputError(
                f"{what} {spec}: gave {found}: expected rows of the {len(source.train)} training images, each once"
            )
        return source, rows.astype(np.int64)

    return policy


POLICIES: dict[str, Policy] = {
    "random": random,
    "class": classes,
    "indices": indices,
    "group": group,
    "competition": competition,
    "given": given,
}


def _amount(policy: str, argument: str | None, n_available: int, what: str) -> int | float:
    """An int is a number, a float a share; both are checked to leave something to retain."""
    where = f"forget policy {policy}"
    try:
        amount = int(argument or "")
    except ValueError:
        pass
    else:
        if amount < 1:
            raise InputError(f"{where}: {amount} {what} would leave the forget set empty: give at least 1")
        if amount >= n_available:
            raise InputError(f"{where}: {amount} of {n_available} {what} would leave nothing to retain: give fewer")
        return amount
    try:
        share = float(argument or "")
    except ValueError:
        raise InputError(
            f"{where}: {argument or ''!r} is no amount: write {policy}:0.02 (a share)"
            + ("" if policy == "competition" else f" or {policy}:10 (a number of {what})")
        ) from None
    if not 0 < share < 1:
        raise InputError(f"{where}: share {argument} is not between 0 and 1: write {policy}:0.02")
    return share


def _imbalanced(source: Source, rng: np.random.Generator) -> Source:
    parts = {}
    for name in ("train", "validation", "test"):
        part = getattr(source, name)
        counts = np.bincount(part.labels, minlength=len(source.class_names))
        keep = []
        for label, count in enumerate(counts):
            wanted = max(1, round(counts[0] * CLASS_SIZE_RATIO**label))
            keep.append(rng.choice(np.flatnonzero(part.labels == label), min(count, wanted), replace=False))
        parts[name] = part.take(np.sort(np.concatenate(keep)))
    return replace(source, **parts)


def _with_subjects(source: Source, rng: np.random.Generator) -> Source:
    """Made-up subjects for a source in which each training image is its own; no subject is in two parts."""
    if len(np.unique(source.train.groups)) < len(source.train):
        return source
    parts, first = {}, 0
    for name in ("train", "validation", "test"):
        part = getattr(source, name)
        groups = _subjects(part, rng) + first
        parts[name] = Part(part.images, part.labels, part.ids, groups)
        first = int(groups.max()) + 1
    return replace(source, **parts)


def _subjects(part: Part, rng: np.random.Generator) -> np.ndarray:
    groups = np.empty(len(part), dtype=np.int64)
    first = 0
    for label in np.unique(part.labels):
        images = rng.permutation(np.flatnonzero(part.labels == label))
        sizes = rng.integers(1, MAX_SUBJECT_IMAGES + 1, size=len(images))
        groups[images] = first + np.repeat(np.arange(len(sizes)), sizes)[: len(images)]
        first = int(groups[images].max()) + 1
    return groups
