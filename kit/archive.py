"""Checkpoints to archive: a stored zip in the order of their numbers; and its check, which reads all of it again.

Nothing is compressed: deflate saves 8% of a float16 ResNet-18 and takes twenty times as long. Each was read
back and checked when it was made, so that here bytes are compared; `kit.tools.verify` checks what anyone made.
"""

import hashlib
import io
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from kit.competition import MEMBER_NAME
from kit.ledger import writing

_CHUNK = 1 << 16  # bytes that are copied at once: they stay in the cache
_DATE = (1980, 1, 1, 0, 0, 0)  # the same bytes for the same checkpoints
# What zipfile raises for a broken file, by its kind of damage.
BROKEN_ZIP = (zipfile.BadZipFile, EOFError, OSError, ValueError, struct.error, zlib.error, RuntimeError, OverflowError)


def serialize(state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> bytes:
    """`torch.save` of a state dict on the CPU; floating-point entries as `dtype` where that can hold them."""
    torch.save({name: _to_cpu(tensor, dtype) for name, tensor in state.items()}, buffer := io.BytesIO())
    return buffer.getvalue()


def _to_cpu(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().as_subclass(Tensor)
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


def archive_faults(archive: Path, crc32: Sequence[int], original: bytes) -> list[str]:
    """What is wrong with an archive that `pack` wrote, nothing where it is as it should be: its members are, whole, the
    checkpoints of these CRC-32, all different, and none of them `original`, the original's as `serialize` gives it."""
    try:
        with zipfile.ZipFile(archive) as members:
            infos = members.infolist()
            expected = [(MEMBER_NAME.format(index=index), crc) for index, crc in enumerate(crc32)]
            if [(info.filename, info.CRC) for info in infos] != expected or members.testzip():
                return ["its bytes are not those that the run wrote: delete it and run again"]
            first_of, twins = {zlib.crc32(original): ""}, []
            for info in infos:
                twin = first_of.setdefault(info.CRC, info.filename)
                if twin != info.filename and members.read(info) == (members.read(twin) if twin else original):
                    twins.append(f"{info.filename} equals {twin or 'the original model'}")
    except BROKEN_ZIP as error:
        return [f"it is no complete zip file ({error}): delete it and run again"]
    vary = "each run must draw its own randomness: look for a fixed seed, or for a method that changes nothing"
    return [f"{len(twins)} of {len(infos)} checkpoints are no new ones, first {twins[0]}: {vary}"] if twins else []


def state_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types and bytes of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
