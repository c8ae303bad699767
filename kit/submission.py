"""Checkpoints to archive: a stored zip in the order of their numbers; and the check of anyone's archive.

Nothing is compressed: deflate saves 8% of a float16 ResNet-18 and takes twenty times as long.
"""

import hashlib
import io
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from tqdm import tqdm

from kit.competition import MEMBER_NAME, load_tensors, state_difference
from kit.errors import InputError, printable
from kit.ledger import writing

_CHUNK = 1 << 16  # bytes that are copied at once: they stay in the cache
_DATE = (1980, 1, 1, 0, 0, 0)  # the same bytes for the same checkpoints
_MEMBER = re.compile(re.escape(MEMBER_NAME).replace(r"\{index\}", r"(0|[1-9][0-9]*)"))
BROKEN_ZIP = (  # what zipfile raises for a broken file, by its kind of damage
    zipfile.BadZipFile,
    EOFError,
    OSError,
    ValueError,
    struct.error,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    OverflowError,
)


def save(state: Mapping[str, Tensor], file: Any, dtype: torch.dtype | None = None) -> None:
    """`torch.save` of a state dict on the CPU; floating-point entries as `dtype` where that can hold them."""
    torch.save({name: _to_cpu(tensor, dtype) for name, tensor in state.items()}, file)


def serialize(state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> bytes:
    """What `save` writes."""
    save(state, buffer := io.BytesIO(), dtype)
    return buffer.getvalue()


def _to_cpu(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach()
    if dtype is not None and tensor.is_floating_point():
        largest = max(map(abs, tensor.aminmax())) if tensor.numel() else 0.0
        if not largest > torch.finfo(dtype).max:  # a variance of raw pixels may hold more than float16 can
            tensor = tensor.to(dtype)
    return tensor.to("cpu").contiguous()


def pack(archive: Path, checkpoints: Iterable[BinaryIO]) -> list[int]:
    """Write checkpoints 0, 1, ... as the competition names them; the archive appears complete or not at all. Their
    CRC-32."""
    found, partial = [], archive.with_name(archive.name + ".partial")
    with writing(archive):
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as members:
            for index, checkpoint in enumerate(checkpoints):
                info = zipfile.ZipInfo(MEMBER_NAME.format(index=index), date_time=_DATE)
                info.external_attr = 0o644 << 16
                with checkpoint, members.open(info, "w", force_zip64=False) as member:
                    shutil.copyfileobj(checkpoint, member, _CHUNK)
                found.append(info.CRC)
        partial.replace(archive)
    return found


@dataclass(frozen=True)
class Check:
    """One line of a verdict: what was checked, whether it holds, what was found, and the remedy where it does not."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def verdict_lines(checks: Iterable[Check]) -> list[str]:
    """A line a check, `ok` or `FAIL` first, the remedy last."""
    return [
        f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.found}" + (f": {check.remedy}" if check.remedy else "")
        for check in checks
    ]


def verify(
    path: Path, n_checkpoints: int, like: Mapping[str, Tensor], *, is_original: bool = True, progress: bool = False
) -> list[Check]:
    """Check an archive as the competition would have to read it: members, names, tensors, finite, all different.

    like: a state dict, on any device, that gives names, shapes and types; the original's unless told otherwise. Nothing
    is unpacked to disk and no code in it runs; members are loaded one at a time, after their size was found plausible,
    so that memory stays bounded by the largest honest checkpoint. A path that is no zip gives a failed check.
    """
    path, like = Path(path), {name: tensor.detach().cpu() for name, tensor in like.items()}
    if not path.is_file():
        return [Check("archive", False, f"{path} does not exist", "the run must end by writing submission.zip")]
    with ExitStack() as opened:
        try:
            archive = opened.enter_context(open_archive(path, 65536 + 1024 * n_checkpoints))
            members = archive.infolist()
            if members and min(info.header_offset for info in members) > 0:
                # A checkpoint is a zip itself: a truncated archive reads as the last whole one inside it.
                raise zipfile.BadZipFile("its table of contents is missing: the writing was cut off")
        except BROKEN_ZIP as error:
            found = printable(f"{path.name} is no complete zip file ({error or type(error).__name__})", 300)
            return [Check("archive", False, found, "write it again")]
        checks = [Check("archive", True, f"{path.name}, {path.stat().st_size / 1e6:,.1f} MB")]
        checks.append(_check_members(members, n_checkpoints))
        if checks[-1].ok:
            checks += _check_tensors(archive, members, like, is_original, progress)
        return checks


class _BoundedFile(io.FileIO):
    """A file that gives at most `limit` bytes at once: a table of contents may name millions of members."""

    limit = 1 << 24

    def read(self, size: int = -1) -> bytes:
        data = b"" if size > self.limit else super().read(size if size >= 0 else self.limit + 1)
        if max(size, len(data)) > self.limit:
            raise zipfile.BadZipFile(f"more than {self.limit:,} bytes of names or of one member")
        return data


@contextmanager
def open_archive(path: Path, table_bytes: int = 1 << 24) -> Iterator[zipfile.ZipFile]:
    """The archive for reading, if its table of contents takes at most `table_bytes`; else zipfile.BadZipFile."""
    with _BoundedFile(path) as file:
        file.limit = table_bytes
        with zipfile.ZipFile(file) as archive:
            file.limit = max([4096, *(info.file_size for info in archive.infolist())])
            yield archive


def _check_members(members: list[zipfile.ZipInfo], n_checkpoints: int) -> Check:
    expected = [MEMBER_NAME.format(index=index) for index in range(n_checkpoints)]
    names = [info.filename for info in members]
    unreadable = [f"{name} {fault}" for name, info in zip(names, members, strict=True) if (fault := _unreadable(info))]
    if sorted(names) == sorted(expected) and not unreadable:
        return Check("members", True, f"{n_checkpoints} checkpoints, named {expected[0]} and so on")
    strange = [name for name in names if not _MEMBER.fullmatch(name)]
    absent = set(expected) - set(names)
    found = f"{len(names)} members instead of {n_checkpoints}"
    if strange:
        found += f", {len(strange)} with another name such as {printable(repr(strange[0]), 100)}"
    if absent:
        found += f", {len(absent)} missing such as {min(absent)}"
    if len(set(names)) < len(names):
        found += f", {len(names) - len(set(names))} twice"
    if unreadable:
        found += f", {printable(unreadable[0], 100)}"
    return Check("members", False, found, f"the archive must hold {expected[0]} to {expected[-1]} and nothing else")


def _unreadable(info: zipfile.ZipInfo) -> str:
    """Why no ordinary file can be read under this name; empty where one can."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed in another way ({info.compress_type}) than the usual one"
    kind = stat.S_IFMT(info.external_attr >> 16)
    return "" if kind in (0, stat.S_IFREG) else "is a link or another special file"


def read_checkpoints(
    archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], largest: int
) -> Iterator[tuple[zipfile.ZipInfo, Any]]:
    """Members one at a time as `torch.load(weights_only=True)` gives them; an exception stands for a broken one."""
    for info in members:
        if info.file_size > largest:
            yield info, InputError(f"{info.file_size:,} bytes where at most {largest:,} were expected")
            continue
        try:
            with archive.open(info) as file:
                data = file.read(info.file_size)  # its size given: whatever else it unpacks to stays packed
            yield info, load_tensors(io.BytesIO(data))
        except MemoryError:
            raise
        except Exception as error:  # torch and zipfile raise many kinds for a broken member
            yield info, error


def largest_checkpoint(original: Mapping[str, Tensor]) -> int:
    """Bytes that no honest checkpoint of this model exceeds: float64 entries, and room for names."""
    return sum(8 * tensor.numel() + 4096 for tensor in original.values()) + 65536


def _check_tensors(
    archive: zipfile.ZipFile,
    members: list[zipfile.ZipInfo],
    like: Mapping[str, Tensor],
    is_original: bool,
    progress: bool,
) -> list[Check]:
    faults: list[str] = []
    first_of: dict[str, str] = {}
    twins: list[str] = []
    types: set[str] = set()
    reader = read_checkpoints(archive, members, largest_checkpoint(like))
    for info, state in tqdm(reader, total=len(members), desc="verifying", disable=not progress):
        if isinstance(state, Exception):
            reason = (str(state).strip() or repr(state)).splitlines()[0]
            faults.append(f"{info.filename}: does not load ({printable(reason, 200)})")
            continue
        if difference := state_difference(state, like):
            faults.append(f"{info.filename}: {printable(difference, 200)}")
            continue
        digest = state_hash(state)
        same = is_original and all(torch.equal(state[name], t.to(state[name].dtype)) for name, t in like.items())
        types.update(str(t.dtype).removeprefix("torch.") for t in state.values() if t.is_floating_point())
        twin = first_of.setdefault(digest, info.filename)
        if twin != info.filename:
            twins.append(f"{info.filename} equals {twin}")
        elif same:
            twins.append(f"{info.filename} equals the original model")
    n, more = len(members), " (and {} more)"
    bad = faults[0] + (more.format(len(faults) - 1) if faults[1:] else "") if faults else ""
    alike = twins[0] + (more.format(len(twins) - 1) if twins[1:] else "") if twins else ""
    mend = "save net.state_dict() of the original's architecture, after checking that it is finite"
    vary = "each run must draw its own randomness: look for a fixed seed, or for a method that changes nothing"
    good = f"names, shapes and types fit, all finite, {' and '.join(sorted(types))}"
    unlike = f"{n} different checkpoints" + (", none the original" if is_original else "")
    return [
        Check("tensors", not faults, bad or good, mend if faults else ""),
        Check("all different", not twins, alike or unlike, vary if twins else ""),
    ]


def state_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types and bytes of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
