"""What an unlearning run works on: retain, forget, validation and test part, drawn from a source by a forget policy."""

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from data_stubs.parts import Part, Source, check_parts, concatenate
from data_stubs.policies import POLICIES, from_file
from kit.errors import InputError
from kit.tools.own import is_file_spec, read_spec

__all__ = ["PARTS", "Part", "Source", "Splits", "fingerprint", "load", "save", "split_forget"]

PARTS = ("retain", "forget", "validation", "test")
ARRAYS = ("images", "labels", "ids", "groups")
GIVEN = "given"
META_FILE = "splits.json"


@dataclass(frozen=True)
class Splits:
    """The four parts; retain and forget keep the order of the training set.

    Raises InputError where the parts do not fit together or an image id occurs twice.
    """

    name: str
    retain: Part
    forget: Part
    validation: Part
    test: Part
    class_names: tuple[str, ...]

    def __post_init__(self):
        check_parts([getattr(self, part) for part in PARTS], self.n_classes, self.name)

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    @property
    def train(self) -> Part:
        """The retain examples, then the forget examples. The arrays are copied."""
        return concatenate(self.retain, self.forget)


def split_forget(source: Source, policy: str, seed: int) -> Splits:
    """Split the training part into retain and forget set.

    policy: random:500, random:0.02, class:3, class:cat, class:0,1, indices:PATH.npy, group:10, group:0.02, competition,
    competition:0.02, given, or a user's file.py:function[:argument]; see `data_stubs.policies`. The same source, policy
    and seed give the same splits.
    Raises InputError for an unknown policy, a bad argument, an empty forget set, or (except for `class` and a user's
    function) a class of which nothing is retained.
    """
    if is_file_spec(policy):
        spec = read_spec(policy, "forget policy")
        name, argument, choose = spec.function, spec.argument, from_file(spec)
    else:
        name, colon, text = policy.partition(":")
        if name not in POLICIES:
            close = get_close_matches(name, POLICIES, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InputError(
                f"forget policy {policy!r} is unknown: {hint}choose from {', '.join(POLICIES)}, file.py:function"
            )
        argument, choose = text if colon else None, POLICIES[name]
    source, index = choose(source, argument, np.random.default_rng(seed))
    if len(index) == 0:
        raise InputError(f"forget policy {policy}: no example would be forgotten: ask for more")
    train = source.train
    forgotten = np.zeros(len(train), dtype=bool)
    forgotten[index] = True
    if forgotten.all():
        raise InputError(f"forget policy {policy}: every example would be forgotten: ask for fewer")
    if name != "class" and not is_file_spec(policy):
        lost = np.setdiff1d(train.labels, train.labels[~forgotten])
        if len(lost):
            where = f"class {lost[0]} ({source.class_names[lost[0]]})"
            raise InputError(f"forget policy {policy}: {where} would have no retain example: forget fewer")
    return Splits(
        name=source.name,
        retain=train.take(np.flatnonzero(~forgotten)),
        forget=train.take(np.flatnonzero(forgotten)),
        validation=source.validation,
        test=source.test,
        class_names=source.class_names,
    )


def flip_labels(splits: Splits, share: float, rng: np.random.Generator) -> Splits:
    """The splits with the labels of round(share * n) images of each part changed to another class, drawn uniformly.

    Labels that cannot be fitted by what they mean keep a model from being sure of everything it was trained on, as the
    ages of the competition do. Whole subjects keep their places in the parts: only labels change. Where whole classes
    are forgotten no retained image gets the label of one, which would be known again.
    """
    gone = np.setdiff1d(splits.forget.labels, splits.retain.labels)
    if splits.n_classes - len(gone) < 2:
        raise InputError("noise: only 1 class is retained: there is no other to flip a label to")
    noisy = {}
    for name in PARTS:
        part = getattr(splits, name)
        flipped, labels = rng.choice(len(part), round(share * len(part)), replace=False), part.labels.copy()
        labels[flipped] = (labels[flipped] + rng.integers(1, splits.n_classes, len(flipped))) % splits.n_classes
        while name == "retain":
            wrong = flipped[np.isin(labels[flipped], gone) | (labels[flipped] == part.labels[flipped])]
            if not wrong.size:
                break
            labels[wrong] = (labels[wrong] + 1) % splits.n_classes
        noisy[name] = replace(part, labels=labels)
    return replace(splits, name=f"{splits.name}, {share:.0%} of the labels flipped", **noisy)


def fingerprint(splits: Splits) -> str:
    """16 hex digits of SHA-256 over all arrays and class names: names whatever was computed from these splits."""
    digest = hashlib.sha256(json.dumps(splits.class_names).encode())
    for part_name in PARTS:
        part = getattr(splits, part_name)
        digest.update(f"{part_name} {part.images.shape}".encode())
        digest.update(np.ascontiguousarray(part.images).data)
        digest.update(np.ascontiguousarray(part.labels).data)
        digest.update(np.ascontiguousarray(part.groups).data)
        digest.update(json.dumps(part.ids.tolist()).encode())
    return digest.hexdigest()[:16]


def save(splits: Splits, folder: Path) -> Path:
    """Write the splits as .npy files, for `load`; `folder` appears complete or not at all.

    A folder with saved splits is replaced. Raises InputError where `folder` holds anything else.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / META_FILE).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and holds no saved splits: choose another folder")
    meta = {"name": splits.name, "class_names": splits.class_names, "fingerprint": fingerprint(splits)}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            complete = Path(temporary) / "complete"
            complete.mkdir()
            for part in PARTS:
                for array in ARRAYS:
                    np.save(complete / f"{part}_{array}.npy", getattr(getattr(splits, part), array))
            (complete / META_FILE).write_text(json.dumps(meta))
            replace_folder(complete, folder, Path(temporary))
    except OSError as error:  # numpy's own, of a full disk, has no strerror
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}): choose another folder") from error
    return folder


def load(folder: Path, *, checked: bool = False) -> Splits:
    """Saved splits with memory-mapped arrays, so that processes on one machine share them.

    checked: all of them are read; InputError where they are not those that were saved.
    """
    folder = Path(folder)
    try:
        meta = json.loads((folder / META_FILE).read_text())
        parts = {
            part: Part(
                *(np.load(folder / f"{part}_{array}.npy", mmap_mode="r", allow_pickle=False) for array in ARRAYS)
            )
            for part in PARTS
        }
        splits = Splits(meta["name"], **parts, class_names=tuple(meta["class_names"]))
        if checked and fingerprint(splits) != meta["fingerprint"]:
            raise ValueError("they were changed after they were saved")
        return splits
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{folder}: are no saved splits ({reason}): save them again") from error


def replace_folder(complete: Path, folder: Path, aside: Path) -> None:
    """Rename `complete` to `folder`, an older one being moved into `aside` (on the same file system) first."""
    try:
        if folder.exists():
            folder.replace(aside / "replaced")
    except OSError as error:
        raise InputError(f"{folder}: cannot be replaced ({error.strerror}): choose another folder") from error
    try:
        complete.replace(folder)
    except OSError as error:
        if (aside / "replaced").exists() and not folder.exists():
            (aside / "replaced").replace(folder)
        raise InputError(f"{folder}: cannot be put in place ({error.strerror}): is another run writing it?") from error
    shutil.rmtree(aside / "replaced", ignore_errors=True)
