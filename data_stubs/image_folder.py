"""Any labelled images: a folder or .zip with train/<class>/ and test/<class>/, decoded once into a cached array."""

from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_stubs.cache import cached_images
from data_stubs.image_listing import Listing, Member, listing_of
from data_stubs.parts import Part, Source, halve_held_out
from kit.errors import InputError

MAX_IMAGE_PIXELS = 2**24  # a few kB of PNG can declare gigabytes of pixels
PROGRESS_FROM = 2_000
DECODER_VERSION = 1  # part of the cache key: raise it when decoding changes


def load_source(path: Path, cache_dir: Path | None = None, *, progress: bool = True) -> Source:
    """Read a folder or .zip: train/<class>/*.{jpg,jpeg,png} and test/<class>/..., possibly inside one top folder.

    Classes are the sorted names of the training folders; images are listed by class, then by file name, and are
    converted to RGB; ids are the paths below the top folder. The test images are halved into test and validation part.
    Images come as a read-only memory map of a file under `cache_dir` (default: see `data_stubs.paths`), which is
    written on first use and found again by names, sizes and checksums (zip) or times (folder), not by `path`.
    Raises InputError naming the file where an image is missing, broken, too large or of another size.
    """
    with listing_of(Path(path)) as listing:
        train = [member for member in listing.members if member.split == "train"]
        test = [member for member in listing.members if member.split == "test"]
        class_names = tuple(sorted({member.class_name for member in train}))
        for split, members in (("train", train), ("test", test)):
            if not members:
                raise InputError(f"{path}: has no images in {split}/<class>/: expected .jpg, .jpeg or .png files there")
        if strange := sorted({member.class_name for member in test} - set(class_names)):
            raise InputError(f"{path}: test/{strange[0]} has no images in train/{strange[0]}: classes must be the same")
        images = _cached(listing, train + test, cache_dir, progress)
    number = {name: label for label, name in enumerate(class_names)}
    labels = np.array([number[member.class_name] for member in train + test], dtype=np.int64)
    ids = np.array([member.name for member in train + test])
    groups = np.arange(len(labels), dtype=np.int64)
    held_out, training = slice(len(train), None), slice(len(train))
    validation, test_part = halve_held_out(Part(images[held_out], labels[held_out], ids[held_out], groups[held_out]))
    train_part = Part(images[training], labels[training], ids[training], groups[training])
    return Source(Path(path).stem, train_part, validation, test_part, class_names)


def _cached(listing: Listing, members: list[Member], cache_dir: Path | None, progress: bool) -> np.ndarray:
    stamps = [DECODER_VERSION, [(member.name, member.n_bytes, member.stamp) for member in members]]
    decode_into = partial(_decode_into, listing=listing, members=members, progress=progress)
    return cached_images("image-folder", stamps, len(members), cache_dir, decode_into)


def _decode_into(target: Path, listing: Listing, members: list[Member], progress: bool) -> None:
    first = decode(listing.read(members[0]), listing.where(members[0]))
    # Straight into the file, so that the images need not fit into memory.
    images = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=(len(members), *first.shape))
    bar = tqdm(members, desc="decoding images", disable=not progress or len(members) <= PROGRESS_FROM)
    for row, member in enumerate(bar):
        images[row] = decode(listing.read(member), listing.where(member), first.shape, listing.where(members[0]))
    images.flush()


def decode(encoded: bytes, where: str, expected: tuple[int, ...] | None = None, like: str = "") -> np.ndarray:
    """JPEG or PNG bytes -> uint8 (3, height, width). Raises InputError starting with `where`.

    expected: the shape that the image must have, that of the image `like`.
    """
    try:
        with Image.open(BytesIO(encoded), formats=("JPEG", "PNG")) as image:  # reads the header only
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                raise InputError(f"{where}: image has {width} x {height} pixels: at most {MAX_IMAGE_PIXELS} are read")
            if expected is not None and (3, height, width) != expected:
                wanted = f"{expected[2]} x {expected[1]}"
                raise InputError(f"{where}: image is {width} x {height}, {like} is {wanted}: make all the same size")
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except InputError:
        raise
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{where}: image cannot be decoded (no JPEG or PNG): mend or remove it") from error
    except Exception as error:  # Pillow raises many kinds for a broken file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{where}: image cannot be decoded ({reason}): mend or remove it") from error
