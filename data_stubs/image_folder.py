"""Any labelled images: a folder or .zip with train/<class>/ and test/<class>/, or <class>/ alone, decoded once into a
cached array."""

import sys
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from data_stubs.cache import cached_images
from data_stubs.image_listing import Listing, Member, listing_of
from data_stubs.parts import HELD_OUT_SEED, Part, Source, halve_held_out, stratified_subset
from kit.errors import InputError

MAX_IMAGE_PIXELS = 2**24  # a few kB of PNG can declare gigabytes of pixels
MAX_SIZE = 1024
HELD_OUT_PART = 5  # one image in so many, where a folder has no test part
PROGRESS_FROM = 2_000
DECODER_VERSION = 1  # part of the cache key: raise it when decoding changes


def load_source(path: Path, cache_dir: Path | None = None, *, size: int | None = None, progress: bool = True) -> Source:
    """Read a folder or .zip: train/<class>/*.{jpg,jpeg,png} and test/<class>/..., possibly inside one top folder.

    Classes are the sorted names of the training folders; images are listed by class, then by file name, and are
    converted to RGB; ids are the paths below the top folder. The test images are halved into test and validation part.
    Of <class>/... without train and test a fifth is held out, drawn with the classes' shares kept. size: scale and crop
    each image to size x size; by default all must be of one size.
    Images come as a read-only memory map of a file under `cache_dir` (default: see `data_stubs.paths`), which is
    written on first use and found again by names, sizes and checksums (zip) or times (folder), not by `path`.
    Raises InputError naming the file where an image is missing, broken, too large or of another size.
    """
    if size is not None and not 1 <= size <= MAX_SIZE:
        raise InputError(f"size of the images is {size}: choose from 1 to {MAX_SIZE} pixels")
    with listing_of(Path(path)) as listing:
        train, test = _split(listing, path, progress)
        class_names = tuple(sorted({member.class_name for member in train}))
        for split, members in (("train", train), ("test", test)):
            if not members:
                raise InputError(f"{path}: has no images in {split}/<class>/: expected .jpg, .jpeg or .png files there")
        if strange := sorted({member.class_name for member in test} - set(class_names)):
            raise InputError(f"{path}: test/{strange[0]} has no images in train/{strange[0]}: classes must be the same")
        images = _cached(listing, train + test, cache_dir, size, progress)
    number = {name: label for label, name in enumerate(class_names)}
    labels = np.array([number[member.class_name] for member in train + test], dtype=np.int64)
    ids = np.array([member.name for member in train + test])
    groups = np.arange(len(labels), dtype=np.int64)
    held_out, training = slice(len(train), None), slice(len(train))
    validation, test_part = halve_held_out(Part(images[held_out], labels[held_out], ids[held_out], groups[held_out]))
    train_part = Part(images[training], labels[training], ids[training], groups[training])
    return Source(Path(path).stem, train_part, validation, test_part, class_names)


def size_of(name: str) -> int | None:
    """The size in a source's name: image-folder@32 -> 32, image-folder -> None."""
    _, at, text = name.partition("@")
    if at and not text.isdecimal():
        raise InputError(f"data source {name}: expected a number of pixels after the @, such as image-folder@32:PATH")
    return int(text) if at else None


def _split(listing: Listing, path: Path, progress: bool) -> tuple[list[Member], list[Member]]:
    """Training and held-out images."""
    members = list(listing.members)
    if members[0].split:
        return [member for member in members if member.split == "train"], [m for m in members if m.split == "test"]
    _, labels = np.unique([member.class_name for member in members], return_inverse=True)
    n_train = len(members) - len(members) // HELD_OUT_PART
    kept = set(stratified_subset(labels, n_train, np.random.default_rng(HELD_OUT_SEED)).tolist())
    if progress:
        print(f"{path}: has no train/ and test/: {len(members) - n_train} images are held out", file=sys.stderr)
    rows = range(len(members))
    return [members[row] for row in rows if row in kept], [members[row] for row in rows if row not in kept]


def _cached(
    listing: Listing, members: list[Member], cache_dir: Path | None, size: int | None, progress: bool
) -> np.ndarray:
    stamps = [DECODER_VERSION, [(member.name, member.n_bytes, member.stamp) for member in members]]
    decode_into = partial(_decode_into, listing=listing, members=members, size=size, progress=progress)
    return cached_images("image-folder", [*stamps, size] if size else stamps, len(members), cache_dir, decode_into)


def _decode_into(target: Path, listing: Listing, members: list[Member], size: int | None, progress: bool) -> None:
    first = decode(listing.read(members[0]), listing.where(members[0]), size=size)
    # Straight into the file, so that the images need not fit into memory.
    images = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=(len(members), *first.shape))
    bar = tqdm(members, desc="decoding images", disable=not progress or len(members) <= PROGRESS_FROM)
    for row, member in enumerate(bar):
        expected = None if size else first.shape
        images[row] = decode(listing.read(member), listing.where(member), expected, listing.where(members[0]), size)
    images.flush()


def decode(
    encoded: bytes, where: str, expected: tuple[int, ...] | None = None, like: str = "", size: int | None = None
) -> np.ndarray:
    """JPEG or PNG bytes -> uint8 (3, height, width). Raises InputError starting with `where`.

    expected: the shape that the image must have, that of the image `like`. size: scale and crop it to size x size.
    """
    try:
        with Image.open(BytesIO(encoded), formats=("JPEG", "PNG")) as image:  # reads the header only
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                raise InputError(f"{where}: image has {width} x {height} pixels: at most {MAX_IMAGE_PIXELS} are read")
            if expected is not None and (3, height, width) != expected:
                wanted = f"{expected[2]} x {expected[1]}"
                remedy = "have all scaled by --size 32 (as a source: image-folder@32:PATH), or make all the same size"
                raise InputError(f"{where}: image is {width} x {height}, {like} is {wanted}: {remedy}")
            if image.mode.startswith("I"):  # 16 bits of grey, of which Pillow would take all above 255 as white
                image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
            image = image.convert("RGB")
            return np.asarray(ImageOps.fit(image, (size, size)) if size else image).transpose(2, 0, 1)
    except InputError:
        raise
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{where}: image cannot be decoded (no JPEG or PNG): mend or remove it") from error
    except Exception as error:  # Pillow raises many kinds for a broken file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{where}: image cannot be decoded ({reason}): mend or remove it") from error
