"""Checkpoints of anyone's: found in folders, patterns, zips and single files, and read safely into a state dict."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kit.competition import load_tensors, state_difference
from kit.errors import InputError, first_line, printable
from kit.tools.verify import BROKEN_ZIP, largest_checkpoint, open_archive, read_bounded

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
# Under these names training programs keep the weights beside optimiser, epoch and so on.
_WRAPPERS = ("model_state_dict", "state_dict", "model_state", "model", "net", "network", "weights", "params", "module")
_BESIDE_WEIGHTS = 4  # times a checkpoint's size that a file may have: an optimiser keeps two moments
_SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A file with one model's weights; member: its name in the zip that `path` is, empty for a file of its own."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}, {self.member}" if self.member else str(self.path)


def is_checkpoint(path: Path) -> bool:
    """By its name alone."""
    return path.suffix.lower() in SUFFIXES


def find(paths: Sequence[Path]) -> list[Checkpoint]:
    """The checkpoints of folders, patterns (`runs/*.pth`), zips and files, in the order of their names, in which 10
    comes after 9. A folder without any is searched below. InputError where there are none."""
    found: list[Checkpoint] = []
    for path in paths:
        found += _members(path) if path.suffix == ".zip" else [Checkpoint(file) for file in _files(path)]
    if twice := [checkpoint for checkpoint, count in Counter(found).items() if count > 1]:
        raise InputError(f"{twice[0]}: is given twice")
    return found


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = [file for file in path.iterdir() if file.is_file() and is_checkpoint(file)]
        files = files or [file for file in path.rglob("*") if file.is_file() and is_checkpoint(file)]
        if not files:
            raise InputError(f"{path}: holds no checkpoints: expected files that end in {', '.join(SUFFIXES)}")
        return sorted(files, key=lambda file: _natural(file.relative_to(path).as_posix()))
    if path.is_file():
        return [path]
    pattern = str(path)
    if any(mark in pattern for mark in "*?["):
        root = Path(path.anchor or ".")
        matching = root.glob(str(path.relative_to(path.anchor)))
        if files := [file for file in matching if file.is_file() and is_checkpoint(file)]:
            return sorted(files, key=lambda file: _natural(file.as_posix()))
        raise InputError(f"{path}: no checkpoint has such a name")
    raise InputError(f"{path}: no such file or folder")


def _members(path: Path) -> list[Checkpoint]:
    try:
        with open_archive(path) as archive:
            names = [name for name in archive.namelist() if is_checkpoint(Path(name)) and "__MACOSX" not in name]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file or folder") from None
    except BROKEN_ZIP as error:
        raise InputError(f"{path}: is no readable zip ({first_line(error)})") from error
    if not names:
        raise InputError(f"{path}: holds no checkpoints: expected members that end in {', '.join(SUFFIXES)}")
    return [Checkpoint(path, name) for name in sorted(names, key=_natural)]


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which net_2 comes before net_10."""
    return [(int(digits or 0), text) for text, digits in re.findall(r"([^0-9]*)([0-9]*)", name)]


def digests(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """SHA-256 of the bytes of each."""
    return [_sha256(checkpoint) for checkpoint in checkpoints]


def _sha256(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256()
    try:
        with ExitStack() as opened:
            if checkpoint.member:
                file = opened.enter_context(opened.enter_context(open_archive(checkpoint.path)).open(checkpoint.member))
            else:
                file = opened.enter_context(checkpoint.path.open("rb"))
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except BROKEN_ZIP as error:
        raise InputError(f"{checkpoint}: cannot be read ({first_line(error)})") from error
    return digest.hexdigest()


def load_checkpoint(checkpoint: Checkpoint, net: nn.Module) -> nn.Module:
    """`net` with the weights of a checkpoint, on the device where it lies; see `read_state`."""
    like = net.state_dict()
    state = read_state(checkpoint, like)
    net.load_state_dict({name: tensor.to(like[name].dtype) for name, tensor in state.items()})
    return net


def read_state(checkpoint: Checkpoint, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict in a checkpoint, by the names of `like`, in whatever floating-point type it has.

    It may be wrapped (`{"model_state_dict": ...}`) and its names may carry a prefix that others lack (`module.` of
    DataParallel, `_orig_mod.` of torch.compile). No code of the file runs, and files far too large are not read. Raises
    InputError, naming the file, where names, shapes or types differ, or entries are not finite.
    """
    largest = _BESIDE_WEIGHTS * largest_checkpoint(like) + _SPARE_BYTES
    try:
        loaded = _safetensors(checkpoint, largest) if _is_safetensors(checkpoint) else _load(checkpoint, largest)
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # torch raises many kinds for a broken file
        reason = printable(first_line(error), 200)
        raise InputError(
            f"{checkpoint}: does not load with torch's weights_only ({reason}): save net.state_dict() alone"
        ) from error
    state = as_named(unwrapped(loaded), like)
    if difference := state_difference(state, dict(like)):
        raise InputError(f"{checkpoint}: does not fit the architecture: {printable(difference, 200)}")
    return state


def _load(checkpoint: Checkpoint, largest: int) -> Any:
    if checkpoint.member:
        with open_archive(checkpoint.path) as archive:
            _, state = next(read_bounded(archive, [archive.getinfo(checkpoint.member)], largest))
        if isinstance(state, Exception):
            raise state
        return state
    _check_size(checkpoint.path.stat().st_size, largest)
    with checkpoint.path.open("rb") as file:
        return load_tensors(file)


def _check_size(n_bytes: int, largest: int) -> None:
    if n_bytes > largest:
        raise InputError(f"has {n_bytes:,} bytes where this architecture needs {largest:,} at most")


def _is_safetensors(checkpoint: Checkpoint) -> bool:
    return (checkpoint.member or checkpoint.path.name).lower().endswith(".safetensors")


def _safetensors(checkpoint: Checkpoint, largest: int) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise InputError("needs the package safetensors: pip install safetensors") from error
    if not checkpoint.member:
        _check_size(checkpoint.path.stat().st_size, largest)
        return load(checkpoint.path.read_bytes())
    with open_archive(checkpoint.path) as archive:
        info = archive.getinfo(checkpoint.member)
        _check_size(info.file_size, largest)
        with archive.open(info) as member:
            return load(member.read(info.file_size))


def unwrapped(loaded: Any) -> Any:
    """The state dict inside of what a training program wrote.

    >>> unwrapped({"epoch": 3, "model_state_dict": {"w": 1}, "optimizer": {"lr": 0.1}})
    {'w': 1}
    """
    while isinstance(loaded, Mapping) and not any(isinstance(value, Tensor) for value in loaded.values()):
        name = next((name for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
        if name is None:
            break
        loaded = loaded[name]
    return loaded


def as_named(state: Any, like: Mapping[str, Any]) -> Any:
    """The entries by the names of `like`, where they differ by a prefix that all of one side share; whole numbers that
    were stored as floats with the rest are whole again. Anything else is given back as it is.

    >>> as_named({"module.fc.w": 1, "n_averaged": 5}, {"fc.w": 0}), as_named({"w": 1}, {"1.w": 0})
    ({'fc.w': 1}, {'1.w': 1})
    """
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        return state
    state = {name: value for name, value in state.items() if name != "n_averaged" or name in like}  # of AveragedModel
    for theirs in _prefixes(state):
        for ours in _prefixes(like):
            if {name[len(theirs) :] for name in state} == {name[len(ours) :] for name in like}:
                state = {ours + name[len(theirs) :]: value for name, value in state.items()}
                return {name: _whole(value, like[name]) for name, value in state.items()}
    return state


def _prefixes(names: Mapping[str, Any]) -> Iterator[str]:
    """What all names share, up to a dot: from nothing to the longest."""
    shared = os.path.commonprefix(list(names))  # noqa: RUF071 - letters: the dots are looked for below
    yield ""
    for place, letter in enumerate(shared):
        if letter == ".":
            yield shared[: place + 1]


def _whole(value: Any, like: Any) -> Any:
    if not isinstance(value, Tensor) or not isinstance(like, Tensor) or like.is_floating_point():
        return value
    return value.round().to(like.dtype) if value.is_floating_point() and value.isfinite().all() else value
