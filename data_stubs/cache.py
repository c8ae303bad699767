"""Decoded images kept in a file, so that they are decoded once; and where such files are kept."""

import hashlib
import json
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_stubs.paths import default_cache
from kit.errors import InputError


def cached_images(
    kind: str, stamps: Any, n_images: int, cache_dir: Path | None, decode_into: Callable[[Path], None]
) -> np.ndarray:
    """uint8 (n_images, channels, height, width), a read-only memory map of a file under `cache_dir`.

    decode_into writes the .npy file where there is none yet, or a damaged one. stamps: what tells these images from
    others, as JSON takes it (names, sizes, times). Raises InputError where the folder cannot be written.
    """
    key = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]
    folder = Path(cache_dir) if cache_dir is not None else default_cache()
    target, checksum = folder / f"{kind}-{key}.npy", folder / f"{kind}-{key}.crc32"
    if (images := _open(target, checksum, n_images)) is not None:
        return images
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{kind}-") as temporary:
            decoded = Path(temporary) / "images.npy"
            decode_into(decoded)
            # The checksum goes first: a crash in between leaves a pair that does not match, hence a rebuild.
            (Path(temporary) / "crc32").write_text(_crc32(np.load(decoded, mmap_mode="r")))
            (Path(temporary) / "crc32").replace(checksum)
            decoded.replace(target)
    except OSError as error:
        raise InputError(f"{folder}: cannot keep decoded images there ({error}): give another cache folder") from error
    return np.load(target, mmap_mode="r", allow_pickle=False)


def _open(target: Path, checksum: Path, n_images: int) -> np.ndarray | None:
    """The cached array; None where there is none or it is damaged, whatever the damage."""
    try:
        images = np.load(target, mmap_mode="r", allow_pickle=False)
        intact = (
            images.dtype == np.uint8
            and images.ndim == 4
            and len(images) == n_images
            and checksum.read_text() == _crc32(images)
        )
    except (OSError, ValueError, EOFError):
        return None
    return images if intact else None


def _crc32(images: np.ndarray) -> str:
    value = 0
    for rows in range(0, len(images), 4096):  # in pieces, so that a large map need not fit into memory
        value = zlib.crc32(np.ascontiguousarray(images[rows : rows + 4096]).data, value)
    return f"{value:08x}"
