"""The images in a folder or .zip laid out as train/<class>/ and test/<class>/, or as <class>/ alone, listed and read
without extraction."""

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
    """One image file. name: train/<class>/<file> or <class>/<file>; stamp: CRC-32 in a zip, modification time (ns) in a
    folder."""

    name: str
    n_bytes: int
    stamp: int

    @property
    def split(self) -> str:
        """train or test; empty where the images are not split."""
        return self.name.rpartition("/")[0].rpartition("/")[0]

    @property
    def class_name(self) -> str:
        return self.name.split("/")[-2]


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
    patterns = [f"{depth}{split}/*/*" for depth in ("", "*/") for split in SPLITS]
    files = [file for pattern in patterns for file in root.glob(pattern)]
    files = files or [file for pattern in ("*", "*/*", "*/*/*") for file in root.glob(pattern)]
    names, top = _below_top(root, (file.relative_to(root).as_posix() for file in files))
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
    images = [name.split("/") for name in names if name.lower().endswith(SUFFIXES)]
    images = [parts for parts in images if parts[0] != "__MACOSX" and not any(part.startswith(".") for part in parts)]
    split = [parts for parts in images if len(parts) in (3, 4) and parts[-3] in SPLITS]
    depth = 3 if split else 2  # train/<class>/<file>, or <class>/<file> where no image lies so
    found: dict[str, list[str]] = {}
    for parts in split or [parts for parts in images if len(parts) in (2, 3) and parts[-2] not in SPLITS]:
        found.setdefault("/".join(parts[:-depth]), []).append("/".join(parts[-depth:]))
    expected = "expected train/<class>/*.jpg and test/<class>/*.jpg, or <class>/*.jpg alone (or .jpeg, .png)"
    if not images:
        raise InputError(f"{path}: has no images: {expected}")
    if len(found) > 1:
        tops = ", ".join(top or "." for top in sorted(found))
        what = "train/ or test/" if split else "classes"
        raise InputError(f"{path}: has {what} in several folders ({tops}): keep one: {expected}")
    classes = {name.split("/")[-2] for below in found.values() for name in below}
    if not split and len(classes) < 2:
        raise InputError(f"{path}: has images, but no folder for each class of them: {expected}")
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
