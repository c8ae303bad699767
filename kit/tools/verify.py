"""The check of anyone's archive, which may be broken or made to harm: no code in it runs and memory stays bounded.

It knows nothing of how the archive was made, and looks at every tensor again.
"""

import io
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import filterfalse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from kit.archive import BROKEN_ZIP, state_hash
from kit.competition import ARCHIVE_NAME, MEMBER_NAME, WORKING_DIR, load_tensors, state_difference
from kit.errors import InputError, first_line, printable

_FOLDER, _, _FILE = MEMBER_NAME.rpartition("/")
_MEMBER, _BARE = (
    re.compile(re.escape(name).replace(r"\{index\}", r"(0|[1-9][0-9]*)")) for name in (MEMBER_NAME, _FILE)
)
ZIP_AGAIN = f"zip {WORKING_DIR}/{ARCHIVE_NAME} /{_FOLDER}/*.pth"  # gives the members their names
_PREFIXES = {
    "module.": "of DataParallel: save net.module.state_dict()",
    "_orig_mod.": "of torch.compile: save the state_dict() of the net before it was compiled",
}


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
        found = f"{path} is a folder" if path.is_dir() else f"{path} does not exist"
        return [Check("archive", False, found, "the run must end by writing submission.zip")]
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
        whole = Check("archive", True, f"{path.name}, {path.stat().st_size / 1e6:,.1f} MB")
        folders, members = list(filter(is_folder, members)), list(filterfalse(is_folder, members))
        names = _check_members(members, n_checkpoints)
        if not names.ok:
            return [whole, names]
        if folders:
            entry = printable(folders[0].filename, 100)
            note = f"; and {len(folders)} entries of folders such as {entry}, which the starter's archive has not"
            names = replace(names, found=names.found + note)
        states = read_bounded(archive, members, largest_checkpoint(like))
        states = ((info, _explained(state, like)) for info, state in states)
        tensors = check_tensors(states, like, n_checkpoints, is_original=is_original, progress=progress)
        return [whole, names, *tensors]


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
    """Members one at a time as `torch.load(weights_only=True)` gives them, none of more than `largest` bytes; an
    exception stands for a broken one."""
    for info in members:
        try:
            if info.file_size > largest:
                raise InputError(f"{info.file_size:,} bytes where at most {largest:,} were expected")
            with archive.open(info) as file:
                data = file.read(info.file_size)  # its size given: whatever else it unpacks to stays packed
            yield info, load_tensors(io.BytesIO(data))
        except MemoryError:
            raise
        except Exception as error:  # torch and zipfile raise many kinds for a broken member
            yield info, error


def is_folder(info: zipfile.ZipInfo) -> bool:
    """Is it the entry of a folder, which `zip -r` and `shutil.make_archive` write and which holds nothing?"""
    named = info.filename.endswith("/")  # info.is_dir() fails on an empty name before Python 3.12
    return named and not info.file_size and stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFDIR)


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
    different = _verdict("all different", twins, unlike, vary)
    if not first_of:
        different = Check("all different", None, "no checkpoint could be looked at")
    return [_verdict("tensors", faults, good, mend), different]


def _verdict(name: str, faults: Sequence[str], good: str, remedy: str) -> Check:
    if not faults:
        return Check(name, True, good)
    return Check(name, False, faults[0] + (f" (and {len(faults) - 1} more)" if faults[1:] else ""), remedy)


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
        if _is_plain(tensor, like.get(name)) and tensor.dtype == torch.float16 and tensor.isinf().any():
            return InputError(
                f"{printable(name, 60)} is infinite in float16, which ends at 65,504: store this tensor in float32"
            )
    return state


def _is_plain(tensor: Any, expected: Tensor | None) -> bool:
    """May its entries be looked at? Others may stand for more than the memory holds, or have none."""
    if not isinstance(tensor, Tensor) or expected is None or tensor.layout != torch.strided:
        return False
    return not tensor.is_nested and tensor.device.type != "meta" and tensor.shape == expected.shape


def _check_members(members: Sequence[zipfile.ZipInfo], n_checkpoints: int) -> Check:
    """Are the members of an archive those of the competition? They are not read."""
    names = [info.filename for info in members]
    expected = [MEMBER_NAME.format(index=index) for index in range(n_checkpoints)]
    faults = []
    if strange := [name for name in names if not _MEMBER.fullmatch(name)]:
        faults.append(f"{len(strange)} with another name such as {printable(repr(strange[0]), 100)}")
    if absent := set(expected) - set(names):
        faults.append(f"{len(absent)} missing such as {min(absent)}")
    if n_twice := len(names) - len(set(names)):
        faults.append(f"{n_twice} twice")
    if unreadable := [f"{info.filename} {fault}" for info in members if (fault := _unreadable(info))]:
        faults.append(printable(unreadable[0], 100))
    if len(members) == n_checkpoints and not faults:
        return Check("members", True, f"{n_checkpoints} checkpoints, named {expected[0]} and so on")
    found = ", ".join([f"{len(names)} members instead of {n_checkpoints}", *faults])
    remedy = f"the archive must hold {expected[0]} to {expected[-1]} and nothing else"
    bare = members and all(_BARE.fullmatch(name.rpartition("/")[2]) for name in names)
    misplaced = bare and len(strange) == len(names)
    return Check("members", False, found, f"{remedy}: {ZIP_AGAIN}" if misplaced else remedy)


def _unreadable(info: zipfile.ZipInfo) -> str:
    """Why no ordinary file can be read under this name; empty where one can."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed in another way ({info.compress_type}) than the usual one"
    kind = stat.S_IFMT(info.external_attr >> 16)
    return "" if kind in (0, stat.S_IFREG) else "is a link or another special file"


def largest_checkpoint(original: Mapping[str, Tensor]) -> int:
    """Bytes that no honest checkpoint of this model exceeds: float64 entries, and room for names."""
    return sum(8 * tensor.numel() + 4096 for tensor in original.values()) + 65536
