"""CIFAR-10 as torchvision reads it, held-out images halved exactly as in the competition's starting kit."""

from pathlib import Path

import numpy as np
from torchvision import datasets

from data_stubs.parts import Part, Source, halve_held_out
from data_stubs.paths import default_cache
from kit.errors import InputError


def load_source(data_root: Path | None = None) -> Source:
    """CIFAR-10 from `data_root` (which holds `cifar-10-batches-py`), downloaded there once (170 MB) if it is missing.

    50,000 training, 5,000 validation and 5,000 test images, 3 x 32 x 32; training images keep their usual order, so
    that the starting kit's forget_idx.npy applies. Default folder: see `data_stubs.paths`.
    Raises InputError where there is neither a copy nor a network.
    """
    root = Path(data_root) if data_root is not None else default_cache()
    train, held_out = _read(root, train=True), _read(root, train=False)
    labels = np.array(train.targets, dtype=np.int64)
    held_out_labels = np.array(held_out.targets, dtype=np.int64)
    validation, test = halve_held_out(
        Part(
            _channels_first(held_out.data),
            held_out_labels,
            np.array([f"test-{row:05d}" for row in range(len(held_out_labels))]),
            len(labels) + np.arange(len(held_out_labels)),
        )
    )
    ids = np.array([f"train-{row:05d}" for row in range(len(labels))])
    return Source("cifar10", Part(_channels_first(train.data), labels, ids), validation, test, tuple(train.classes))


def _read(root: Path, train: bool) -> datasets.CIFAR10:
    try:
        return datasets.CIFAR10(str(root), train=train)
    except RuntimeError:  # torchvision's way to say "missing or not as published"
        pass
    try:
        root.mkdir(parents=True, exist_ok=True)
        return datasets.CIFAR10(str(root), train=train, download=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{root}: holds no CIFAR-10 and the download failed ({reason}): "
            "give --data-root FOLDER with cifar-10-batches-py, or use image-folder:PATH or synthetic"
        ) from error


def _channels_first(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
