"""The corpus of hostile files, made by a script: archives, checkpoints, arrays, tables and images meant to do harm.

python -m tests.hostile_files FOLDER writes all of it. None does harm by lying there; the zip bombs are 1 to 3 MB.
"""

import bz2
import io
import pickle
import stat
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kit.archive import serialize
from kit.competition import MEMBER_NAME
from local_eval.models import tinyconv

N_CHECKPOINTS = 3
BOMB_BYTES = 1 << 29  # what the bombs unpack to
MARK = "code_ran"  # the file that code in a pickle would leave behind


def original() -> dict[str, Tensor]:
    """The state dict that the archives pretend to be unlearned from."""
    torch.manual_seed(0)
    return tinyconv().state_dict()


def good() -> dict[str, bytes]:
    """Member name -> bytes of valid checkpoints."""
    state, members = original(), {}
    for index in range(N_CHECKPOINTS):
        changed = {name: tensor.clone() for name, tensor in state.items()}
        changed["fc.bias"] += index + 1
        members[MEMBER_NAME.format(index=index)] = serialize(changed)
    return members


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


class _Code:
    """A pickle that writes a file when it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple]:
        return (exec, (f"open({str(self.mark)!r}, 'w').close()",))


@cache
def _zeros(size: int = BOMB_BYTES) -> bytes:
    """`size` zero bytes, deflated: about a thousandth of it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    chunk = bytes(1 << 20)
    return b"".join([*(packer.compress(chunk) for _ in range(size >> 20)), packer.flush()])


def _zip(members: Mapping[str, bytes] | list[tuple[str | zipfile.ZipInfo, bytes]], method: int = 0) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name twice is meant
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name, data in members.items() if isinstance(members, Mapping) else members:
                archive.writestr(name, data)
    return buffer.getvalue()


def _raw_zip(parts: list[tuple[bytes, int, int, int, bytes]]) -> bytes:
    """A zip written by hand, so that its headers may lie: (name, method, size claimed, crc, packed bytes) each."""
    body, table = b"", b""
    for name, method, size, crc, packed in parts:
        common = struct.pack("<HHHHHIIIHH", 20, 0, method, 0, 33, crc, len(packed), size, len(name), 0)
        table += b"PK\1\2" + struct.pack("<H", 20) + common
        table += struct.pack("<HHHII", 0, 0, 0, 0, len(body)) + name
        body += b"PK\3\4" + common + name + packed
    n = len(parts)
    return body + table + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, n, n, len(table), len(body), 0)


def _inner(data: bytes, change: Callable[[str, bytes], bytes | None], method: int = 0) -> bytes:
    """A checkpoint with the parts of its own zip changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        parts = {info.filename: file.read(info) for info in file.infolist()}
    changed = {name: change(name, part) for name, part in parts.items()}
    return _zip({name: part for name, part in changed.items() if part is not None}, method)


def _last(data: bytes) -> bytes:
    """The archive whose last checkpoint is `data`."""
    members = good()
    return _zip({**members, list(members)[-1]: data})


def archives(mark: Path) -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) of archives that must not pass. mark: what code in them would write."""
    members, state = good(), original()
    names, blobs = list(members), list(members.values())
    yield "code_in_a_pickle", _last(saved(_Code(mark)))
    yield "code_in_an_old_pickle", _last(pickle.dumps(_Code(mark), protocol=2))
    yield "code_beside_tensors", _last(saved({**state, "extra": _Code(mark)}))
    yield "code_in_a_part", _last(_inner(blobs[2], lambda n, p: pickle.dumps(_Code(mark)) if "data.pkl" in n else p))
    yield "slip_upwards", _zip({**members, "../../outside": b"x"})
    yield "slip_absolute", _zip({**members, "/tmp/outside": b"x"})
    yield "slip_windows", _zip({**members, "..\\..\\outside": b"x"})
    yield "slip_instead", _zip(dict(zip([*names[:2], f"../../{names[2]}"], blobs, strict=True)))
    link = zipfile.ZipInfo(names[2])
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    yield "symbolic_link", _zip([*list(members.items())[:2], (link, b"/etc/passwd")])
    device = zipfile.ZipInfo(names[2])
    device.external_attr = (stat.S_IFCHR | 0o666) << 16
    yield "device", _zip([*list(members.items())[:2], (device, blobs[2])])
    yield "a_member_twice", _zip([*members.items(), (names[0], blobs[1])])
    yield "control_characters", _zip({**members, "kaggle/tmp/\x1b[2J\x1b]0;owned\x07\r\n.pth": b""})
    yield "right_to_left", _zip({**members, "kaggle/tmp/\u202egpj.pth": b""})
    yield "very_long_name", _zip({**members, "a" * 65000: b""})
    zeros = _zeros()
    parts = [(name.encode(), 0, len(blob), zlib.crc32(blob), blob) for name, blob in members.items()]
    yield "a_member_without_a_name", _raw_zip([*parts, (b"", 0, 0, 0, b"")])
    yield "bomb", _raw_zip([*parts[:2], (names[2].encode(), 8, BOMB_BYTES, 0, zeros)])
    yield "bomb_that_lies_about_its_size", _raw_zip([*parts[:2], (names[2].encode(), 8, 100_000, 0, zeros)])
    yield (
        "bomb_within_a_checkpoint",
        _last(
            _raw_zip([(b"archive/data.pkl", 8, BOMB_BYTES, 0, _zeros(64 << 20)), (b"archive/version", 0, 2, 0, b"3\n")])
        ),
    )
    yield "compressed_within", _last(_inner(blobs[2], lambda n, p: p, zipfile.ZIP_DEFLATED))
    yield "bzip2", _zip(members, zipfile.ZIP_BZIP2)
    yield "lzma", _zip(members, zipfile.ZIP_LZMA)
    packer = bz2.BZ2Compressor()
    packed = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(256)), packer.flush()])
    yield "bomb_of_bzip2", _raw_zip([*parts[:2], (names[2].encode(), 12, 100_000, 0, packed)])
    yield "one_part_many_times", _last(_overlapping(blobs[2]))
    yield "a_million_members", _many(1_000_000)
    yield "table_beyond_the_end", _zip(members)[:-22] + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 3, 3, 2**31, 2**31, 0)
    yield "table_of_four_gigabytes", b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, 2**32 - 2, 0, 0)
    first = next(iter(state))
    n_values = sum(tensor.numel() for tensor in state.values())
    yield "too_large", _last(saved({**state, first: torch.zeros(n_values * 4)}))
    yield "too_small", _last(saved({**state, first: torch.zeros(1)}))
    yield "huge_tensor_of_one_value", _last(saved({**state, first: torch.zeros(1).expand(1 << 20, 1 << 20)}))
    yield "storage_shorter_than_its_tensor", _last(_inner(blobs[2], lambda n, p: p[:16] if n.endswith("/0") else p))
    yield "storage_missing", _last(_inner(blobs[2], lambda n, p: None if n.endswith("/1") else p))
    yield "sparse", _last(saved({**state, first: state[first].to_sparse()}))
    halves = torch.zeros(1, dtype=torch.float16)
    yield "halves_of_one_value", _last(saved({**state, first: halves.expand(10**13)}))
    yield "meta_of_halves", _last(saved({**state, first: state[first].half().to("meta")}))
    rows = state["fc.weight"].half()
    yield "rows_of_halves", _last(saved({**state, "fc.weight": rows.to_sparse_csr()}))
    yield "nested_halves", _last(saved({**state, "fc.weight": torch.nested.nested_tensor([*rows])}))
    yield "meta", _last(saved({**state, first: state[first].to("meta")}))
    yield "complex", _last(saved({**state, first: state[first].to(torch.complex64)}))
    yield "deep_nesting", _last(_inner(blobs[2], lambda n, p: _nested_pickle(100_000) if "data.pkl" in n else p))
    yield "keys_that_are_no_names", _last(saved({**state, 7: torch.zeros(1)}))
    yield "keys_with_control_characters", _last(saved({**state, "\x1b[31mred\r\n": torch.zeros(1)}))
    yield "very_long_key", _last(saved({**state, "k" * 60_000: torch.zeros(1)}))
    yield "no_dict", _last(saved([1, 2, 3]))
    yield "not_finite", _last(saved({**state, first: torch.full_like(state[first], float("nan"))}))
    yield "encrypted", _flagged(_zip(members))
    yield "empty", b""
    yield "text", b"this is no archive\n" * 100
    yield "half", _zip(members)[: len(_zip(members)) // 2]
    yield "only_the_end", _zip({})
    yield "a_checkpoint_instead", blobs[0]


def _nested_pickle(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def _overlapping(data: bytes) -> bytes:
    """A checkpoint whose parts lie upon each other: many names for the same bytes."""
    return _raw_zip([(b"archive/data.pkl", 0, len(data) * 1000, zlib.crc32(data), data)])


def _many(n: int) -> bytes:
    """An archive of n empty members: a table of contents much larger than what it lists."""
    name = b"x"
    common = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, 0, 0, 0, len(name), 0)
    body = b"PK\3\4" + common + name
    table = (b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name) * n
    count = min(n, 0xFFFF)
    return body + table + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(table), len(body), 0)


def _flagged(data: bytes) -> bytes:
    """The same archive, its members said to be encrypted."""
    changed = bytearray(data)
    for mark, offset in ((b"PK\3\4kag", 6), (b"PK\1\2", 8)):
        at = changed.find(mark[:4])
        while at >= 0:
            if changed[at : at + 4] == mark[:4] and b"kaggle/tmp" in changed[at : at + 80]:
                changed[at + offset] |= 1
            at = changed.find(mark[:4], at + 4)
    return bytes(changed)


def arrays(mark: Path) -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) of .npz files that must not be scored."""

    def npz(**content: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, **content)
        return buffer.getvalue()

    names = ("unlearned_confidence", "retrained_confidence")
    plain = np.zeros((4, 3))
    objects = np.empty((4, 3), dtype=object)
    objects[:] = _Code(mark)
    yield "objects", npz(**dict.fromkeys(names, objects))
    yield "texts", npz(**dict.fromkeys(names, np.full((4, 3), "x")))
    yield "no_rows", npz(**dict.fromkeys(names, np.zeros((0, 3))))
    yield "four_dimensions", npz(**dict.fromkeys(names, np.zeros((2, 2, 2, 2))))
    yield "not_a_number", npz(**dict.fromkeys(names, plain * np.nan))
    yield "a_pickle", pickle.dumps(_Code(mark))
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, plain)
    head = buffer.getvalue()[:128]
    huge = head.replace(b"(4, 3)", b"(9999999, 99999)".ljust(6))[:128]
    yield "a_header_that_claims_terabytes", _zip({f"{name}.npy": huge for name in names})
    wide = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        wide, {"descr": "<f8", "fortran_order": False, "shape": (BOMB_BYTES // 8 // 1000, 1000)}
    )
    n_bytes = len(wide.getvalue()) + BOMB_BYTES
    yield "bomb", _raw_zip([(f"{name}.npy".encode(), 8, n_bytes, 0, _zeros()) for name in names])
    yield "code_in_the_header", _zip({f"{name}.npy": head.replace(b"(4, 3)", b"exec(1)") for name in names})
    yield "other_names_with_control_characters", npz(**{"\x1b[2J": plain})
    yield "half", npz(**dict.fromkeys(names, plain))[:200]


def tables() -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) of tables that must not be read as a split."""
    head = b"image_id,age_group,age,person_id\n"
    yield "no_text", bytes(range(256))
    yield "zero_bytes", head + b"0-1\0,1,2,3\n"
    yield "huge_field", head + b"0-" + b"1" * 200_000 + b",1,2,3\n"
    yield "superscript_label", head + "0-1,²,2,3\n".encode()
    yield "huge_label", head + b"0-1," + b"9" * 5000 + b",2,3\n"
    yield "negative_label", head + b"0-1,-1,2,3\n"
    yield "upwards", head + b"..-..,1,2,3\n"
    yield "a_path", head + b"/etc-passwd,1,2,3\n"
    yield "control_characters", head + b"\x1b[2J,1,2,3\n"
    yield "unclosed_quote", head + b'"0-1,1,2,3\n'
    yield "too_few_columns", head + b"0-1\n"
    yield "other_columns", b"a,b\n1,2\n"
    yield "no_rows", head
    yield "empty", b""


def _png(width: int, height: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    between = b"".join(chunk(*one) for one in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + between + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def images() -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) of images that must not be decoded."""
    rows = zlib.compress(b"\0" * (1 + 3 * 32) * 32)
    yield "bomb", _png(30_000, 30_000, b"x\x9c" + _zeros(64 << 20))
    yield "large", _png(9_000, 9_000, zlib.compress(bytes(9_000 * 27_001)))
    yield "no_pixels", _png(0, 0, b"")
    yield "cut_off", _png(32, 32, rows)[:50]
    yield "garbage_rows", _png(32, 32, b"\xff" * 50)
    yield "text_bomb", _png(32, 32, b"", (b"zTXt", b"k\0\0" + zlib.compress(bytes(100 << 20))))
    yield "another_format", b"GIF89a" + bytes(100)
    yield "postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) run\n"
    yield "empty", b""
    yield "no_image", b"#!/bin/sh\nexit 1\n"


def write_corpus(folder: Path) -> dict[str, list[Path]]:
    """All of it, by kind: archives, arrays, tables and images, each file named after what is wrong with it."""
    mark = Path(folder) / MARK
    kinds = {
        "archives": (archives(mark), ".zip"),
        "arrays": (arrays(mark), ".npz"),
        "tables": (tables(), ".csv"),
        "images": (images(), ".png"),
    }
    written: dict[str, list[Path]] = {}
    for kind, (files, ending) in kinds.items():
        (Path(folder) / kind).mkdir(parents=True, exist_ok=True)
        for name, data in files:
            path = Path(folder) / kind / (name + ending)
            path.write_bytes(data)
            written.setdefault(kind, []).append(path)
    return written


if __name__ == "__main__":
    for kind, paths in write_corpus(Path(sys.argv[1])).items():
        print(f"{kind}: {len(paths)} files, {sum(path.stat().st_size for path in paths) / 1e6:.1f} MB")
