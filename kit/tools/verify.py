"""The check of anyone's archive, which may be broken or made to harm: no code in it runs and memory stays bounded."""

import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import filterfalse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kit.archive import Check, check_names, check_tensors, complete, incomplete, read_checkpoints
from kit.competition import ARCHIVE_NAME, MEMBER_NAME, WORKING_DIR
from kit.errors import InputError, printable

_FOLDER, _, _FILE = MEMBER_NAME.rpartition("/")
_MEMBER, _BARE = (
    re.compile(re.escape(name).replace(r"\{index\}", r"(0|[1-9][0-9]*)")) for name in (MEMBER_NAME, _FILE)
)
ZIP_AGAIN = f"zip {WORKING_DIR}/{ARCHIVE_NAME} /{_FOLDER}/*.pth"  # gives the members their names
_PREFIXES = {
    "module.": "of DataParallel: save net.module.state_dict()",
    "_orig_mod.": "of torch.compile: save the state_dict() of the net before it was compiled",
}
# What zipfile raises for a broken file, by its kind of damage.
BROKEN_ZIP = (zipfile.BadZipFile, EOFError, OSError, ValueError, struct.error, zlib.error, RuntimeError, OverflowError)


def verify(
    path: Path, n_checkpoints: int, like: Mapping[str, Tensor], *, is_original: bool = True, progress: bool = False
) -> list[Check]:
    """Check an archive as the competition would have to read it: members, names, tensors, finite, all different.

    like: a state dict, on any device, that gives names, shapes and types; the original's unless told otherwise. Nothing
    is unpacked to disk and no code in it runs; members are loaded one at a time, after their size was found plausible,
    so that memory stays bounded by the largest honest checkpoint. A path that is no zip gives a failed check.
    """
    path = Path(path)
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
            return [incomplete(path, error)]
        folders, members = list(filter(is_folder, members)), list(filterfalse(is_folder, members))
        names = check_names([info.filename for info in members], n_checkpoints, _faults(members, n_checkpoints))
        if not names.ok:
            bare = members and all(_BARE.fullmatch(info.filename.rpartition("/")[2]) for info in members)
            misplaced = bare and not any(_MEMBER.fullmatch(info.filename) for info in members)
            return [complete(path), replace(names, remedy=f"{names.remedy}: {ZIP_AGAIN}") if misplaced else names]
        if folders:
            entry = printable(folders[0].filename, 100)
            note = f"; and {len(folders)} entries of folders such as {entry}, which the starter's archive has not"
            names = replace(names, found=names.found + note)
        states = read_bounded(archive, members, largest_checkpoint(like))
        states = ((info, _explained(state, like)) for info, state in states)
        tensors = check_tensors(states, like, n_checkpoints, is_original=is_original, progress=progress)
        return [complete(path), names, *tensors]


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


def read_bounded(
    archive: zipfile.ZipFile, members: Iterable[zipfile.ZipInfo], largest: int
) -> Iterator[tuple[zipfile.ZipInfo, Any]]:
    """`read_checkpoints`, which reads no member of more than `largest` bytes: an exception stands for it."""
    for info in members:
        if info.file_size > largest:
            yield info, InputError(f"{info.file_size:,} bytes where at most {largest:,} were expected")
        else:
            yield from read_checkpoints(archive, [info])


def is_folder(info: zipfile.ZipInfo) -> bool:
    """Is it the entry of a folder, which `zip -r` and `shutil.make_archive` write and which holds nothing?"""
    named = info.filename.endswith("/")  # info.is_dir() fails on an empty name before Python 3.12
    return named and not info.file_size and stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFDIR)


def _explained(state: Any, like: Mapping[str, Tensor]) -> Any:
    """A member as it was read, or the InputError that says what is the matter with one of a kind that is known."""
    if isinstance(state, Exception):
        if numpy := re.search(r"numpy[\w.]*", str(state)):
            return InputError(
                f"does not load with weights_only, as torch 2.6 and later load: it holds a {printable(numpy[0], 40)}: "
                "save net.state_dict() alone"
            )
        return state
    if not isinstance(state, dict):
        return state
    names = [str(name) for name in state]
    for key, inner in state.items():
        if isinstance(inner, dict) and set(like) & set(inner):
            wrapped = printable(repr(key), 60)
            return InputError(f"its state dict is wrapped in {{{wrapped}: ...}}: save what is under that key alone")
    for prefix, remedy in _PREFIXES.items():
        if names and all(name.startswith(prefix) for name in names):
            return InputError(f"all names begin with {prefix!r}, first {printable(repr(names[0]), 60)}, {remedy}")
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.dtype == torch.float16 and tensor.isinf().any():
            return InputError(
                f"{printable(name, 60)} is infinite in float16, which ends at 65,504: store this tensor in float32"
            )
    return state


def _faults(members: Sequence[zipfile.ZipInfo], n_checkpoints: int) -> list[str]:
    """What is wrong with the members of an archive, without reading them."""
    names = [info.filename for info in members]
    absent = {MEMBER_NAME.format(index=index) for index in range(n_checkpoints)} - set(names)
    found = []
    if strange := [name for name in names if not _MEMBER.fullmatch(name)]:
        found.append(f"{len(strange)} with another name such as {printable(repr(strange[0]), 100)}")
    if absent:
        found.append(f"{len(absent)} missing such as {min(absent)}")
    if n_twice := len(names) - len(set(names)):
        found.append(f"{n_twice} twice")
    if unreadable := [f"{info.filename} {fault}" for info in members if (fault := _unreadable(info))]:
        found.append(printable(unreadable[0], 100))
    return found


def _unreadable(info: zipfile.ZipInfo) -> str:
    """Why no ordinary file can be read under this name; empty where one can."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed in another way ({info.compress_type}) than the usual one"
    kind = stat.S_IFMT(info.external_attr >> 16)
    return "" if kind in (0, stat.S_IFREG) else "is a link or another special file"


def largest_checkpoint(original: Mapping[str, Tensor]) -> int:
    """Bytes that no honest checkpoint of this model exceeds: float64 entries, and room for names."""
    return sum(8 * tensor.numel() + 4096 for tensor in original.values()) + 65536
