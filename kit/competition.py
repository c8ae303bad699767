"""The competition's contract: names, columns and limits, and its input tree read into three DataLoaders.

Source: the organisers' starter notebook `run-unlearn-finetune` of the Kaggle competition
`neurips-2023-machine-unlearning`.
"""

import csv
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from kit.errors import InputError, first_line

INPUT_DIR = Path("/kaggle/input/neurips-2023-machine-unlearning")
WORKING_DIR = Path("/kaggle/working")
TMP_DIR = Path("/kaggle/tmp")
N_CHECKPOINTS = 512
TIME_LIMIT_S = 8 * 3600.0
DISK_LIMIT_BYTES = 20 * 10**9
N_CLASSES = 10
BATCH_SIZE = 64
COLUMNS = ("image_id", "age_group", "age", "person_id")
SPLITS = ("retain", "forget", "validation")
MODEL_FILE = "original_model.pth"
CLASS_WEIGHTS_FILE = "age_class_weights.json"  # label -> number of occurrences, of the original's training loss
_MAX_TABLE_BYTES, _MAX_PIXELS = 1 << 28, 1 << 24  # beyond these a file is no competition's, and would fill the memory
STAND_IN_FILE = "empty.txt"  # present only where the hidden data is not: the notebook then just ends
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
ARCHIVE_NAME = "submission.zip"
MEMBER_NAME = "kaggle/tmp/unlearned_checkpoint_{index}.pth"


class Loaders(NamedTuple):
    """The three loaders that every unlearning function receives, in this order."""

    retain: DataLoader
    forget: DataLoader
    validation: DataLoader


class ExampleDataset(Dataset):
    """Labelled images, decoded once; an item is the starter's dict.

    images: uint8 (n_examples, channels, height, width); age_group: the labels, n_examples integers;
    image_id, age, person_id: n_examples each, by default the row number, 0 and the row number.

    An item has the keys image, image_id, age_group, age, person_id in this order. As in the starter, its image is
    float32 with values 0..255 (no scaling, no normalisation) and replaces the uint8 one in the cached dict.
    """

    def __init__(
        self,
        images: Tensor,
        age_group: Sequence[int] | Tensor,
        *,
        image_id: Sequence[str] | None = None,
        age: Sequence[int] | None = None,
        person_id: Sequence[Any] | None = None,
    ):
        n_examples = len(images)
        self.images = images
        self.labels = torch.as_tensor(age_group, dtype=torch.int64)
        image_id = [str(row) for row in range(n_examples)] if image_id is None else image_id
        age = [0] * n_examples if age is None else age
        person_id = list(range(n_examples)) if person_id is None else person_id
        rows = zip(images, image_id, self.labels.tolist(), age, person_id, strict=True)
        self.examples = [dict(zip(("image", *COLUMNS), row, strict=True)) for row in rows]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.examples[index]
        example["image"] = example["image"].to(torch.float32)
        return example

    def batch(self, index: list[int]) -> dict[str, Any]:
        """The items of `index` collated, cut out of one tensor on the device where `images` lies."""
        where = torch.tensor(index, device=self.images.device)
        rows = [self.examples[i] for i in index]
        return {
            "image": self.images.index_select(0, where).to(torch.float32),  # faster than images[where]
            "image_id": [row["image_id"] for row in rows],
            "age_group": self.labels[where],
            "age": _collated([row["age"] for row in rows]),
            "person_id": _collated([row["person_id"] for row in rows]),
        }

    def to(self, device: torch.device | str) -> "ExampleDataset":
        """Move images and labels to `device` for `batch`; items keep what they hold."""
        self.images = self.images.to(device)
        self.labels = self.labels.to(device)
        return self


def _collated(values: list[Any]) -> Tensor | list[Any]:
    return values if values and isinstance(values[0], str) else torch.tensor(values)


def data_hash(dataset: Dataset) -> str:
    """What tells two data sets apart: a checksum of images and labels, of another kind of set its length."""
    if not isinstance(dataset, ExampleDataset):
        return str(len(dataset))
    parts = (tensor.cpu().contiguous().numpy() for tensor in (dataset.images, dataset.labels))
    return f"{len(dataset)}-" + "-".join(f"{zlib.crc32(part):08x}" for part in parts)


class TensorLoader(DataLoader):
    """A DataLoader over an ExampleDataset without the per-item work.

    Batches and their order equal those of `DataLoader(dataset, batch_size, shuffle)` under the same torch seed;
    batches lie on the dataset's device. `.dataset` may be wrapped in another DataLoader as usual.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A plain loader spends one draw on its workers' base seed; the same draw here keeps both orders equal.
        torch.empty((), dtype=torch.int64).random_()
        for index in self.batch_sampler:
            yield self.dataset.batch(index)


def make_loaders(
    retain: Dataset,
    forget: Dataset,
    validation: Dataset,
    batch_size: int = BATCH_SIZE,
    loader: Callable[..., DataLoader] = DataLoader,
) -> Loaders:
    """Three shuffled loaders, as the starter makes them: no `drop_last`, no workers."""
    return Loaders(*(loader(ds, batch_size=batch_size, shuffle=True) for ds in (retain, forget, validation)))


def is_stand_in(root: Path = INPUT_DIR) -> bool:
    """True where only the public stand-in is mounted: a notebook then touches the archive and ends."""
    return (Path(root) / STAND_IN_FILE).exists()


def read_tree(
    root: Path = INPUT_DIR,
    batch_size: int = BATCH_SIZE,
    *,
    loader: Callable[..., DataLoader] = TensorLoader,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Loaders:
    """Read the competition's input tree, every image once.

    Raises InputError, naming the file, where the tree is incomplete or an image cannot be decoded.
    """
    datasets = [read_split(root, split, progress=progress).to(device) for split in SPLITS]
    return make_loaders(*datasets, batch_size=batch_size, loader=loader)


def read_split(root: Path, split: str, *, progress: bool = True) -> ExampleDataset:
    """One split of the tree, rows sorted by image path as in the starter."""
    table = Path(root) / f"{split}.csv"
    rows = sorted(read_rows(table), key=lambda row: str(image_path(root, row["image_id"])))
    paths = [image_path(root, row["image_id"]) for row in rows]
    with ThreadPoolExecutor() as threads:
        bar = tqdm(threads.map(_read_image, paths), total=len(paths), desc=f"reading {split}", disable=not progress)
        images = list(bar)
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise InputError(f"{path}: image is {tuple(image.shape)}, others are {tuple(images[0].shape)}: mend it")
    return ExampleDataset(
        torch.stack(images),
        [int(row["age_group"]) for row in rows],
        image_id=[row["image_id"] for row in rows],
        age=_column(rows, "age"),
        person_id=_column(rows, "person_id"),
    )


def image_path(root: Path, image_id: str) -> Path:
    """`image_id` is `a-b`: folder a, file b."""
    folder, _, name = image_id.partition("-")
    return Path(root) / "images" / folder / f"{name.split('-')[0]}.png"


def read_rows(table: Path) -> list[dict[str, str]]:
    """Rows of a split's table as texts; InputError, with the line, for whatever the contract does not allow."""
    try:
        if table.stat().st_size > _MAX_TABLE_BYTES:
            raise InputError(f"{table}: is larger than any table of the competition: is this its input tree?")
        with table.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: cannot be read ({error}): is this the competition's input tree?") from error
    if not rows:
        raise InputError(f"{table}: has no rows: the split must not be empty")
    if missing := [column for column in COLUMNS if rows[0].get(column) is None]:
        raise InputError(f"{table}: column {', '.join(missing)} is missing: expected {', '.join(COLUMNS)}")
    for line, row in enumerate(rows, start=2):
        where = f"{table}, line {line}"
        if any(row[column] is None for column in COLUMNS):
            raise InputError(f"{where}: has too few columns: expected {', '.join(COLUMNS)}")
        if not re.fullmatch("[0-9]{1,9}", row["age_group"]) or int(row["age_group"]) >= N_CLASSES:
            raise InputError(f"{where}: age_group is {row['age_group']!r}: labels are 0 to {N_CLASSES - 1}")
        if not {*row["image_id"].split("-")}.isdisjoint({"", ".", ".."}) or "/" in row["image_id"]:
            raise InputError(f"{where}: image_id is {row['image_id']!r}: expected folder-file")
    return rows


def _read_image(path: Path) -> Tensor:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels")
            pixels = image.convert("RGB")
            flat = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8)
            return flat.view(pixels.height, pixels.width, 3).permute(2, 0, 1).contiguous()
    except FileNotFoundError as error:
        raise InputError(f"{path}: image is missing: copy the input tree again") from error
    except Exception as error:  # Pillow raises many kinds for a broken file
        raise InputError(f"{path}: image is no readable PNG ({error}): copy the input tree again") from error


def _column(rows: Sequence[dict[str, str]], name: str) -> list[int] | list[str]:
    """Integers where all are, of 64 bits at most; else texts."""
    texts = [row[name] for row in rows]
    return [*map(int, texts)] if all(re.fullmatch("[+-]?[0-9]{1,18}", text.strip()) for text in texts) else texts


def resnet18() -> nn.Module:
    """The competition's architecture: 122 state-dict entries, 11,181,642 parameters."""
    from torchvision.models import resnet18 as torchvision_resnet18  # here: importing torchvision takes seconds

    return torchvision_resnet18(weights=None, num_classes=N_CLASSES)


def load_state(path: Path, net: nn.Module) -> nn.Module:
    """Load a state dict into `net`, which is returned. Names, shapes and finite values are checked first."""
    try:
        with Path(path).open("rb") as file:
            state = load_tensors(file)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file: give the original model's state dict") from error
    except Exception as error:  # torch raises many kinds for a broken file
        raise InputError(f"{path}: is no state dict that loads with weights_only: {first_line(error)}") from error
    if difference := state_difference(state, net.state_dict()):
        raise InputError(f"{path}: does not fit {type(net).__name__}: {difference}: mend the file or the architecture")
    net.load_state_dict(state)
    return net


def load_tensors(file: BinaryIO) -> Any:
    """What `torch.save` wrote into `file`. No code of the file runs, and no more is unpacked than it holds."""
    size = file.seek(0, 2)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as parts:
            infos = parts.infolist()
        if any(info.compress_type for info in infos) or sum(info.file_size for info in infos) > size:
            raise InputError("it unpacks to more than it holds, which torch.save never writes")
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def load_original(root: Path = INPUT_DIR, architecture: Callable[[], nn.Module] = resnet18) -> nn.Module:
    """The original model of an input tree, in evaluation mode."""
    return load_state(Path(root) / MODEL_FILE, architecture()).eval()


def state_difference(state: Any, expected: dict[str, Tensor]) -> str | None:
    """What makes `state` differ from a state dict of the expected names, shapes and finite values; None if nothing.

    Floating-point entries may have another floating-point type (float16 checkpoints are valid), and so may counts, such
    as BatchNorm's of batches: `load_state_dict` converts them.
    """
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        return "it is no dict of tensors"
    if missing := [name for name in expected if name not in state]:
        return f"{len(missing)} entries are missing, first {missing[0]}"
    if surplus := [name for name in state if name not in expected]:
        return f"{len(surplus)} entries are unknown, first {str(surplus[0])!r}"
    for name, tensor in expected.items():
        value = state[name]
        if value.is_nested or value.layout != torch.strided or value.device.type == "meta":
            return f"{name} is no tensor with its entries in memory"
        if value.shape != tensor.shape:
            return f"{name} has shape {tuple(value.shape)}, expected {tuple(tensor.shape)}"
        if value.dtype not in (_FLOATS if tensor.is_floating_point() else (*_INTEGERS, *_FLOATS)):
            return f"{name} is {value.dtype}, expected {tensor.dtype}"
        if value.is_floating_point() and value.numel() and not all(map(torch.isfinite, value.aminmax())):
            return f"{name} has NaN or infinite values"
    return None
