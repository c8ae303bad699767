"""German traffic signs: 1,307 physical signs, each filmed in about 30 frames. The nearest free stand-in for the
competition's data: a sign is a subject, as a person with several photographs is there.

Source: Stallkamp et al. 2012, "Man vs. computer: Benchmarking machine learning algorithms for traffic sign
recognition", in the layout of torchvision's GTSRB; free for research.
"""

import csv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision import datasets
from tqdm import tqdm

from data_stubs.cache import cached_images
from data_stubs.parts import Part, Source
from data_stubs.paths import default_cache
from kit.errors import InputError

SIZE = 32  # height and width that every image is brought to
HELD_OUT_SEED = 42  # of the draw of the held-out signs: a source is the same for every seed
HELD_OUT_SHARE = 0.1  # of the signs of each class, for validation and for test; at least one
N_CLASSES = 43
# Five super-categories in the competition's shape, with training and validation signs (as many for test): speed limits
# dominate as the first age group does. Signs without a category (ends of limits) are left out.
SUPER = {
    "speed limits": ((*range(6), 7, 8), 300, 60),
    "warnings": (range(18, 32), 60, 12),
    "mandatory": (range(33, 41), 40, 8),
    "priority": (range(11, 15), 30, 6),
    "prohibitions": ((9, 10, 15, 16, 17), 20, 4),
}
VARIANTS = ("", "super", "ten")
OFFICIAL = "official"  # the benchmark's own test images as the test part


def load_source(
    variant: str = "", data_root: Path | None = None, cache_dir: Path | None = None, *, progress: bool = True
) -> Source:
    """The training images, with validation and test part of signs that are in no other part; 3 x 32 x 32.

    variant: "" for the 43 classes, `super` for the super-categories of `SUPER`, `ten` for the ten largest classes;
    with `,official` (or `official` alone) the test part is the benchmark's own test set. data_root: a folder that
    holds `gtsrb/GTSRB`, downloaded there once where it is missing. cache_dir: where decoded images are kept.
    Raises InputError where there is neither a copy nor a network, and for a broken image.
    """
    words = variant.split(",") if variant else []
    official = OFFICIAL in words
    kind = ",".join(word for word in words if word != OFFICIAL)
    if kind not in VARIANTS or len(set(words)) < len(words):
        raise InputError(f"gtsrb:{variant}: is unknown: write gtsrb, gtsrb:super, gtsrb:ten or gtsrb:super,{OFFICIAL}")
    root = _root(Path(data_root) if data_root is not None else default_cache(), official)
    paths = sorted((root / "Training").glob("*/*.ppm"))
    known = {f"{number:05d}" for number in range(N_CLASSES)}
    if strange := next((path.parent for path in paths if path.parent.name not in known), None):
        raise InputError(f"{strange}: is no class of GTSRB, 00000 to {N_CLASSES - 1:05d}: move it out of Training")
    names = [f"{path.parent.name}/{path.stem}" for path in paths]
    images = _decoded(paths, cache_dir, progress)
    classes = np.array([int(name[:5]) for name in names])
    signs = np.unique([name.rsplit("_", 1)[0] for name in names], return_inverse=True)[1].astype(np.int64)

    class_names, categories, counts = _categories(kind, classes)
    labels = _labels(categories, classes)
    chosen = _draw_signs(labels, signs, counts)
    everything = Part(images, np.maximum(labels, 0), np.array(names), signs)  # below 0: in no part
    train, validation, test = (everything.take(np.flatnonzero(np.isin(signs, part) & (labels >= 0))) for part in chosen)
    if official:
        test = _official_test(root, categories, int(signs.max()) + 1, cache_dir, progress)
    return Source(f"gtsrb:{variant}" if variant else "gtsrb", train, validation, test, class_names)


def _root(folder: Path, official: bool) -> Path:
    """The folder gtsrb/GTSRB below `folder`, downloaded where it is missing."""
    root = folder / "gtsrb" / "GTSRB"
    for split, present in (("train", (root / "Training").is_dir()), ("test", (root / "Final_Test").is_dir())):
        if present or (split == "test" and not official):
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            datasets.GTSRB(str(folder), split=split, download=True)
        except (OSError, RuntimeError) as error:  # URLError is an OSError
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"{folder}: holds no gtsrb/GTSRB ({split}) and the download failed ({reason}): give --data-root FOLDER "
                "that holds it, or use another --source"
            ) from error
    if not any((root / "Training").glob("*/*.ppm")):
        raise InputError(f"{root / 'Training'}: has no <class>/*.ppm: unpack the training images of GTSRB there")
    return root


def _categories(kind: str, classes: np.ndarray) -> tuple[tuple[str, ...], list[Sequence[int]], list]:
    """Names, the benchmark's classes of each label, and (training, held-out) signs of each, None for shares."""
    if kind == "super":
        return tuple(SUPER), [SUPER[name][0] for name in SUPER], [SUPER[name][1:] for name in SUPER]
    numbers = range(N_CLASSES)
    if kind == "ten":
        numbers = sorted(np.argsort(-np.bincount(classes, minlength=N_CLASSES), kind="stable")[:10].tolist())
    return tuple(f"sign {number:02d}" for number in numbers), [(number,) for number in numbers], [None] * len(numbers)


def _labels(categories: list[Sequence[int]], classes: np.ndarray) -> np.ndarray:
    """int64, one a benchmark's class; -1 for those of no category."""
    label_of = np.full(N_CLASSES, -1, dtype=np.int64)
    for label, members in enumerate(categories):
        label_of[list(members)] = label
    return label_of[classes]


def _draw_signs(labels: np.ndarray, signs: np.ndarray, counts: list) -> tuple[list[int], list[int], list[int]]:
    """Signs of the training, validation and test part."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for label, count in enumerate(counts):
        present = rng.permutation(np.unique(signs[labels == label]))
        n_held_out = count[1] if count else max(1, round(HELD_OUT_SHARE * len(present)))
        n_train = count[0] if count else len(present) - 2 * n_held_out
        if n_train < 1 or n_train + 2 * n_held_out > len(present):
            raise InputError(f"gtsrb: label {label} has {len(present)} signs: are all training images unpacked?")
        for part, size in zip(parts, (n_train, n_held_out, n_held_out), strict=True):
            part.extend(present[:size].tolist())
            present = present[size:]
    return parts


def _official_test(
    root: Path, categories: list[Sequence[int]], first_group: int, cache_dir: Path | None, progress: bool
) -> Part:
    table = root.parent / "GT-final_test.csv"
    try:
        rows = list(csv.DictReader(table.read_text().splitlines(), delimiter=";"))
        rows = [(row["Filename"], range(N_CLASSES).index(int(row["ClassId"]))) for row in rows]
        if not rows:
            raise ValueError("it has no rows")
    except (OSError, KeyError, TypeError, ValueError) as error:  # TypeError: a row is too short
        raise InputError(f"{table}: is not GTSRB's table of test labels ({error}): download it again") from error
    labels = _labels(categories, np.array([number for _, number in rows]))
    kept = np.flatnonzero(labels >= 0)
    paths = [root / "Final_Test" / "Images" / rows[row][0] for row in kept]
    names = [f"test/{path.stem}" for path in paths]
    groups = first_group + np.arange(len(kept), dtype=np.int64)
    return Part(_decoded(paths, cache_dir, progress), labels[kept], np.array(names), groups)


def _decoded(paths: list[Path], cache_dir: Path | None, progress: bool) -> np.ndarray:
    """uint8 (n_images, 3, SIZE, SIZE), kept by the files' names, sizes and times."""
    try:
        found = [path.stat() for path in paths]
    except OSError as error:
        raise InputError(f"{error.filename}: image is missing ({error.strerror}): unpack it again") from error
    stamps = [SIZE, [(p.parent.name, p.name, s.st_size, s.st_mtime_ns) for p, s in zip(paths, found, strict=True)]]

    def decode_into(target: Path) -> None:
        with ThreadPoolExecutor() as threads:
            images = threads.map(_decode, paths)
            bar = tqdm(images, total=len(paths), desc="decoding images", disable=not progress)
            np.save(target, np.stack(list(bar)))

    return cached_images("gtsrb", stamps, len(paths), cache_dir, decode_into)


def _decode(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=("PPM",)) as image:
            pixels = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            return np.asarray(pixels).transpose(2, 0, 1)
    except Exception as error:  # Pillow raises many kinds for a broken file
        raise InputError(f"{path}: image cannot be decoded ({error}): unpack it again") from error
