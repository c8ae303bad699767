"""The images in a folder or .zip laid out as train/<class>/ and test/<class>/, listed and read without extraction."""

import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kit.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png")
SPLITS = ("train", "test")
MAX_IMAGE_BYTES = 20_000_000


@dataclass(frozen=True)
class Member:
    """One image file. name: train/<class>/<file>; stamp: CRC-32 in a zip, modification time (ns) in a folder."""

    name: str
    n_bytes: int
    stamp: int

    @property
    def split(self) -> str:
        return self.name.split("/")[0]

    @property
    def class_name(self) -> str:
        return self.name.split("/")[1]


@dataclass(frozen=True)
class Listing:
    """members: sorted by split, class and file name; read: member -> file content; where: member -> its full name."""

    members: tuple[Member, ...]
    read: Callable[[Member], bytes]
    where: Callable[[Member], str]


@contextmanager
def listing_of(path: Path) -> Iterator[Listing]:
    """List a folder or .zip. A zip stays open inside the `with`; its members are never extracted.

    Raises InputError for anything else, for two top folders and for files over MAX_IMAGE_BYTES.
    """
    if path.is_dir():
        yield _folder_listing(path)
        return
    if not path.exists():
        raise InputError(f"{path}: no such folder or .zip: give one with train/<class>/ and test/<class>/")
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise InputError(f"{path}: is neither a folder nor a readable .zip ({error})") from error
    with archive:
        yield _zip_listing(path, archive)


def _folder_listing(root: Path) -> Listing:
    names = (
        file.relative_to(root).as_posix()
        for depth in ("", "*/")
        for split in SPLITS
        for file in root.glob(f"{depth}{split}/*/*")
    )
    names, top = _below_top(root, names)
    members = []
    for name in names:
        try:
            status = (root / top / name).stat()
        except OSError as error:
            raise InputError(f"{root / top / name}: image is missing ({error.strerror}): restore it") from error
        members.append(Member(name, status.st_size, status.st_mtime_ns))

    def read(member: Member) -> bytes:
        try:
            return (root / top / member.name).read_bytes()
        except OSError as error:
            raise InputError(f"{root / top / member.name}: image is missing ({error.strerror}): restore it") from error

    return _listing(members, read, lambda member: str(root / top / member.name))


def _zip_listing(path: Path, archive: zipfile.ZipFile) -> Listing:
    entries = {info.filename: info for info in archive.infolist()}
    names, top = _below_top(path, (info.filename for info in archive.infolist()))
    prefix = f"{top}/" if top else ""
    members = [Member(name, entries[prefix + name].file_size, entries[prefix + name].CRC) for name in names]

    def read(member: Member) -> bytes:
        try:
            return archive.read(entries[prefix + member.name])
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise InputError(
                f"{path}, {member.name}: image cannot be unpacked ({error}): copy the zip again"
            ) from error

    return _listing(members, read, lambda member: f"{path}, {member.name}")


def _below_top(path: Path, names: Iterable[str]) -> tuple[list[str], str]:
    """Names of the images below the one top folder (or ""), and that folder; hidden and other files are left out."""
    found: dict[str, list[str]] = {}
    for name in names:
        parts = name.split("/")
        hidden = name.startswith((".", "__MACOSX/")) or "/." in name
        if len(parts) in (3, 4) and parts[-3] in SPLITS and name.lower().endswith(SUFFIXES) and not hidden:
            found.setdefault("/".join(parts[:-3]), []).append("/".join(parts[-3:]))
    if not found:
        raise InputError(f"{path}: has no images: expected train/<class>/*.jpg and test/<class>/*.jpg (or .jpeg, .png)")
    if len(found) > 1:
        tops = ", ".join(top or "." for top in sorted(found))
        raise InputError(f"{path}: has train/ or test/ in several folders ({tops}): keep one")
    ((top, below),) = found.items()
    if len(set(below)) < len(below):
        twice = next(name for name in below if below.count(name) > 1)
        raise InputError(f"{path}: has {twice} twice: write the zip again")
    return below, top


def _listing(members: list[Member], read: Callable[[Member], bytes], where: Callable[[Member], str]) -> Listing:
    for member in members:
        if member.n_bytes > MAX_IMAGE_BYTES:
            limit = f"at most {MAX_IMAGE_BYTES // 10**6} MB are read"
            raise InputError(f"{where(member)}: image has {member.n_bytes / 1e6:.0f} MB: {limit}")
    members = sorted(members, key=lambda member: member.name.split("/"))
    return Listing(tuple(members), read, where)
