"""Splits and a trained model -> the competition's input tree, for dry runs of submissions."""

import csv
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_stubs.splits import Splits, replace_folder
from kit.competition import (
    CLASS_WEIGHTS_FILE,
    COLUMNS,
    MODEL_FILE,
    N_CLASSES,
    SPLITS,
    STAND_IN_FILE,
    image_path,
)
from kit.errors import InputError

IMAGES_PER_FOLDER = 1000
PNG_COMPRESSION = 1  # of 0..9: small noisy images gain little from more, at several times the seconds
TREE_ENTRIES = {"images", MODEL_FILE, CLASS_WEIGHTS_FILE, STAND_IN_FILE, *(f"{split}.csv" for split in SPLITS)}


def write_tree(
    splits: Splits,
    model_state_dict: Mapping[str, Tensor],
    root: Path,
    *,
    ages: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write retain, forget and validation part and the original model as the competition's notebooks find them.

    The test part is left out: the competition does not hand it out. image_id is `a-b` by the rank of an image's id
    among all (which tells nothing about its split), age_group its label, person_id its group, age that of
    ages["retain" | "forget" | "validation"] (integers), by default the middle of decade `age_group`.
    Returns `root`, which appears complete or not at all; an older tree there is replaced. Raises InputError where
    `root` holds anything else, for images that are not RGB and for more than 10 classes.
    """
    _check(splits, ages)
    every_id = sorted(image_id for split in SPLITS for image_id in getattr(splits, split).ids.tolist())
    number = {image_id: rank for rank, image_id in enumerate(every_id)}
    with _Replacing(Path(root)) as tree:
        for split in SPLITS:
            part = getattr(splits, split)
            names = ["{}-{}".format(*divmod(number[image_id], IMAGES_PER_FOLDER)) for image_id in part.ids.tolist()]
            split_ages = 10 * part.labels + 5 if ages is None else np.asarray(ages[split])
            columns = (names, part.labels.tolist(), split_ages.tolist(), part.groups.tolist())
            with (tree / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerow(COLUMNS)
                table.writerows(zip(*columns, strict=True))
            _write_images([image_path(tree, name) for name in names], part.images)
        counts = sum(np.bincount(part.labels, minlength=N_CLASSES) for part in (splits.retain, splits.forget))
        weights = {str(label): int(count) for label, count in enumerate(counts)}
        (tree / CLASS_WEIGHTS_FILE).write_text(json.dumps(weights))
        # Clones, because torch.save writes all of a tensor's storage, and a view's may be large.
        state = {name: tensor.detach().cpu().clone() for name, tensor in model_state_dict.items()}
        torch.save(state, tree / MODEL_FILE)
    return Path(root)


def write_empty_tree(root: Path) -> Path:
    """Write the public stand-in, in which a submission only touches the archive and ends: nothing but empty.txt."""
    with _Replacing(Path(root)) as tree:
        (tree / STAND_IN_FILE).touch()
    return Path(root)


class _Replacing:
    """A temporary folder beside `root` that takes its place at the end of a `with` without an error."""

    def __init__(self, root: Path):
        self.root = root

    def __enter__(self) -> Path:
        if self.root.is_symlink() or (self.root.exists() and not self.root.is_dir()):
            raise InputError(f"{self.root}: exists and is no folder: choose another place for the input tree")
        entries = {entry.name for entry in self.root.iterdir()} if self.root.exists() else set()
        if entries and not (entries <= TREE_ENTRIES and entries & {f"{SPLITS[0]}.csv", STAND_IN_FILE}):
            raise InputError(f"{self.root}: holds something else than an input tree: choose an empty or new folder")
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            self._temporary = tempfile.TemporaryDirectory(dir=self.root.parent, prefix=f".{self.root.name}.")
        except OSError as error:
            raise InputError(f"{self.root}: cannot be written ({error.strerror}): choose another place") from error
        self._tree = Path(self._temporary.name) / "tree"
        self._tree.mkdir()
        return self._tree

    def __exit__(self, kind, error, traceback) -> None:
        with self._temporary:
            if isinstance(error, OSError):
                raise InputError(f"{self.root}: cannot be written ({error.strerror}): choose another place") from error
            if kind is None:
                replace_folder(self._tree, self.root, Path(self._temporary.name))


def _check(splits: Splits, ages: Mapping[str, np.ndarray] | None) -> None:
    if splits.retain.images.shape[1] != 3:
        channels = splits.retain.images.shape[1]
        raise InputError(f"{splits.name}: images have {channels} channels: the input tree holds RGB images (3)")
    if splits.n_classes > N_CLASSES:
        raise InputError(f"{splits.name}: has {splits.n_classes} classes: the input tree holds at most {N_CLASSES}")
    for split in SPLITS if ages is not None else ():
        found = np.asarray(ages.get(split, ()))
        if found.shape != (len(getattr(splits, split)),) or found.dtype.kind not in "iu":
            wanted = f"integers ({len(getattr(splits, split))},)"
            raise InputError(f"ages[{split!r}] is {found.dtype} {found.shape}: expected {wanted}")


def _write_images(paths: Iterable[Path], images: np.ndarray) -> None:
    for path, image in zip(paths, images, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path, compress_level=PNG_COMPRESSION)
