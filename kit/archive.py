"""Checkpoints to archive: a stored zip in the order of their numbers; and its check, which reads all of it again.

Nothing is compressed: deflate saves 8% of a float16 ResNet-18 and takes twenty times as long.
"""

import hashlib
import io
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from tqdm import tqdm

from kit.competition import MEMBER_NAME, load_tensors, state_difference
from kit.errors import InputError, first_line, printable
from kit.ledger import writing

_CHUNK = 1 << 16  # bytes that are copied at once: they stay in the cache
_DATE = (1980, 1, 1, 0, 0, 0)  # the same bytes for the same checkpoints


def serialize(state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> bytes:
    """`torch.save` of a state dict on the CPU; floating-point entries as `dtype` where that can hold them."""
    torch.save({name: _to_cpu(tensor, dtype) for name, tensor in state.items()}, buffer := io.BytesIO())
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
    """One line of a verdict: what was checked, whether it holds (None: could not be decided), what was found, and the
    remedy where it does not."""

    name: str
    ok: bool | None
    found: str
    remedy: str = ""


def verdict_lines(checks: Iterable[Check]) -> list[str]:
    """A line a check, `ok`, `FAIL` or `?` first, the remedy last."""
    words = {True: "ok  ", False: "FAIL", None: "?   "}
    return [
        f"{words[check.ok]}  {check.name}: {check.found}" + (f": {check.remedy}" if check.remedy else "")
        for check in checks
    ]


def check_packed(path: Path, like: Mapping[str, Tensor], n_checkpoints: int, *, progress: bool = False) -> list[Check]:
    """Check an archive that `pack` wrote: members, names, tensors, finite, all different, none the original `like`."""
    try:
        with zipfile.ZipFile(path) as archive:
            checks = [complete(path), check_names(archive.namelist(), n_checkpoints)]
            if checks[-1].ok:
                states = read_checkpoints(archive, archive.infolist())
                checks += check_tensors(states, like, n_checkpoints, progress=progress)
            return checks
    except (zipfile.BadZipFile, OSError) as error:
        return [incomplete(path, error)]


def complete(path: Path) -> Check:
    """The first check of an archive that could be opened."""
    return Check("archive", True, f"{path.name}, {path.stat().st_size / 1e6:,.1f} MB")


def incomplete(path: Path, error: Exception) -> Check:
    """The only check of one that could not."""
    found = printable(f"{path.name} is no complete zip file ({error or type(error).__name__})", 300)
    return Check("archive", False, found, "write it again")


def check_names(names: Sequence[str], n_checkpoints: int, faults: Sequence[str] = ()) -> Check:
    """Are the names of members those of the competition? faults: what else was found of them."""
    expected = [MEMBER_NAME.format(index=index) for index in range(n_checkpoints)]
    if sorted(names) == sorted(expected) and not faults:
        return Check("members", True, f"{n_checkpoints} checkpoints, named {expected[0]} and so on")
    found = ", ".join([f"{len(names)} members instead of {n_checkpoints}", *faults])
    return Check("members", False, found, f"the archive must hold {expected[0]} to {expected[-1]} and nothing else")


def read_checkpoints(
    archive: zipfile.ZipFile, members: Iterable[zipfile.ZipInfo]
) -> Iterator[tuple[zipfile.ZipInfo, Any]]:
    """Members one at a time as `torch.load(weights_only=True)` gives them; an exception stands for a broken one."""
    for info in members:
        try:
            with archive.open(info) as file:
                data = file.read(info.file_size)  # its size given: whatever else it unpacks to stays packed
            yield info, load_tensors(io.BytesIO(data))
        except MemoryError:
            raise
        except Exception as error:  # torch and zipfile raise many kinds for a broken member
            yield info, error


def check_tensors(
    checkpoints: Iterable[tuple[zipfile.ZipInfo, Any]],
    like: Mapping[str, Tensor],
    n_checkpoints: int,
    *,
    is_original: bool = True,
    progress: bool = False,
) -> list[Check]:
    """Two checks of what `read_checkpoints` gives: are names, shapes and types those of the state dict `like`, on any
    device, and all entries finite? Are all different, and none equal to `like` where that is the original?"""
    like = {name: tensor.detach().cpu() for name, tensor in like.items()}
    faults, twins, first_of, types = [], [], {}, set()
    for info, state in tqdm(checkpoints, total=n_checkpoints, desc="verifying", disable=not progress):
        if isinstance(state, Exception):
            why = printable(first_line(state), 200)
            faults.append(f"{info.filename}: {why if isinstance(state, InputError) else f'does not load ({why})'}")
            continue
        if difference := state_difference(state, like):
            faults.append(f"{info.filename}: {printable(difference, 200)}")
            continue
        types.update(
            str(tensor.dtype).removeprefix("torch.") for tensor in state.values() if tensor.is_floating_point()
        )
        twin = first_of.setdefault(state_hash(state), info.filename)
        if twin != info.filename:
            twins.append(f"{info.filename} equals {twin}")
        elif is_original and all(
            torch.equal(state[name], tensor.to(state[name].dtype)) for name, tensor in like.items()
        ):
            twins.append(f"{info.filename} equals the original model")
    good = f"names, shapes and types fit, all finite, {' and '.join(sorted(types))}"
    unlike = f"{n_checkpoints} different checkpoints" + (", none the original" if is_original else "")
    mend = "save net.state_dict() of the original's architecture, after checking that it is finite"
    vary = "each run must draw its own randomness: look for a fixed seed, or for a method that changes nothing"
    return [_verdict("tensors", faults, good, mend), _verdict("all different", twins, unlike, vary)]


def _verdict(name: str, faults: Sequence[str], good: str, remedy: str) -> Check:
    if not faults:
        return Check(name, True, good)
    return Check(name, False, faults[0] + (f" (and {len(faults) - 1} more)" if faults[1:] else ""), remedy)


def state_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types and bytes of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
