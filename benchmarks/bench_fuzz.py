"""Mutated archives given to `verify`: no crash, no hang, nothing written, memory bounded.

Archives of three small checkpoints, honest and from the corpus of hostile files, are changed at random: bits and bytes
flipped, numbers of headers replaced, pieces cut, doubled, moved or swapped between archives. A process of its own runs
them, so that a crash of the interpreter is counted, not suffered. A changed archive may pass: where only the zip's own
bookkeeping changed, or where the checkpoints are still finite, complete and different. How many did is recorded.

python -m benchmarks.bench_fuzz [--n 100000]
"""

import argparse
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from benchmarks.record import record, rounded
from kit.archive import pack, serialize
from kit.tools.verify import Check, verify
from tests.hostile_files import archives

N_CHECKPOINTS = 3
SLOW_S = 5.0  # one archive of a few kilobytes must never take so long


def small_net() -> nn.Module:
    """A few hundred parameters, so that most bytes are structure and not weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


def seeds(folder: Path) -> list[bytes]:
    """Honest archives of the small net, stored and with each kind of type, and the small ones of the hostile corpus."""
    state, found = small_net().state_dict(), []
    for dtype in (None, torch.float16):
        changed = [
            {name: t + n * t.is_floating_point() for name, t in state.items()} for n in range(1, N_CHECKPOINTS + 1)
        ]
        pack(folder / "seed.zip", (io.BytesIO(serialize(one, dtype)) for one in changed))
        found.append((folder / "seed.zip").read_bytes())
    hostile = [data for _, data in archives(folder / "mark") if 22 < len(data) < 400_000]
    return [*found * 8, *hostile]  # two of three mutants come from an honest one


def mutant(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """`data` with one to eight changes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        if not changed:
            break
        rng.choice((_flip, _byte, _number, _cut, _double, _swap, _zero, _header))(rng, changed, other)
    return bytes(changed)


def _flip(rng: random.Random, data: bytearray, other: bytes) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _byte(rng: random.Random, data: bytearray, other: bytes) -> None:
    data[rng.randrange(len(data))] = rng.randrange(256)


def _number(rng: random.Random, data: bytearray, other: bytes) -> None:
    at, size = rng.randrange(len(data)), rng.choice((1, 2, 4, 8))
    value = rng.choice((0, 1, -1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**62, rng.getrandbits(60)))
    data[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")


def _cut(rng: random.Random, data: bytearray, other: bytes) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 4, 30, 500, len(data)))]


def _double(rng: random.Random, data: bytearray, other: bytes) -> None:
    start = rng.randrange(len(data))
    data[start:start] = data[start : start + rng.choice((1, 4, 46, 500))]


def _swap(rng: random.Random, data: bytearray, other: bytes) -> None:
    start, size = rng.randrange(len(data)), rng.choice((4, 46, 500, 5000))
    begin = rng.randrange(len(other))
    data[start : start + size] = other[begin : begin + size]


def _zero(rng: random.Random, data: bytearray, other: bytes) -> None:
    start, size = rng.randrange(len(data)), rng.choice((2, 8, 64))
    data[start : start + size] = bytes(len(data[start : start + size]))


def _header(rng: random.Random, data: bytearray, other: bytes) -> None:
    """A field right behind one of the marks that structure a zip, or one in a pickle."""
    mark = rng.choice((b"PK\3\4", b"PK\1\2", b"PK\5\6", b"\x80\x02", b"ctorch"))
    places, at = [], data.find(mark)
    while at >= 0:
        places.append(at)
        at = data.find(mark, at + 1)
    if places:
        at = min(len(data) - 1, rng.choice(places) + rng.randrange(4, 46))
        data[at] = rng.choice((0, 1, 8, 12, 14, 127, 128, 255, rng.randrange(256)))


def kind_of(checks: list[Check]) -> str:
    """Which check told it, and the words of the reason that are no names or numbers."""
    return next((check.name for check in checks if not check.ok), "passed")


def child(start: int, stop: int, seed_folder: Path, report: Path) -> None:
    """Verify the mutants start..stop-1; the report is rewritten as it goes, so that a crash tells where."""
    torch.set_num_threads(1)
    blobs = [path.read_bytes() for path in sorted(seed_folder.glob("*"))]
    original, path = small_net().state_dict(), seed_folder.parent / "work" / "mutant.zip"
    counts: Counter[str] = Counter()
    slowest = 0.0
    for number in range(start, stop):
        rng = random.Random(number)
        path.write_bytes(mutant(rng, rng.choice(blobs), rng.choice(blobs)))
        if number % 50 == 0:
            report.write_text(json.dumps({"at": number, "counts": counts, "slowest_s": slowest}))
        begin = time.monotonic()
        signal.alarm(20)
        try:
            checks = verify(path, N_CHECKPOINTS, original)
            counts[kind_of(checks)] += 1
            if not all(check.found.isprintable() for check in checks):
                counts["UNPRINTABLE"] += 1
        except Exception:
            counts["RAISED"] += 1
            traceback.print_exc()
        signal.alarm(0)
        slowest = max(slowest, time.monotonic() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report.write_text(json.dumps({"at": stop, "counts": counts, "slowest_s": slowest, "peak_mib": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100_000)
    n = parser.parse_args().n
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "seeds").mkdir()
        (folder / "work").mkdir()
        for number, data in enumerate(seeds(folder)):
            (folder / f"seeds/{number:03d}").write_bytes(data)
        (folder / "seed.zip").unlink()
        before = set(folder.rglob("*")) | {folder / "work/mutant.zip", folder / "report"}
        counts: Counter[str] = Counter()
        crashes, slowest, peak, begin, start = [], 0.0, 0.0, time.monotonic(), 0
        while start < n:
            stop = min(n, start + 10_000)
            if (pid := os.fork()) == 0:
                child(start, stop, folder / "seeds", folder / "report")
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            report = json.loads((folder / "report").read_text())
            counts.update(report["counts"])
            slowest, peak = max(slowest, report["slowest_s"]), max(peak, report.get("peak_mib", 0.0))
            if code:
                crashes.append({"code": code, "after": report["at"]})
                stop = min(n, report["at"] + 50)
            start = stop
            print(f"{start} of {n}: {dict(counts)}, {len(crashes)} crashes", flush=True)
        written = sorted(str(path.relative_to(folder)) for path in set(folder.rglob("*")) - before)
        results = {
            "mutants": n,
            "seconds": time.monotonic() - begin,
            "outcomes": dict(counts),
            "crashes_of_the_interpreter": crashes,
            "exceptions": counts["RAISED"],
            "unprintable_lines": counts["UNPRINTABLE"],
            "slowest_s": slowest,
            "hangs": int(slowest > SLOW_S),
            "peak_memory_mib": peak,
            "files_written_elsewhere": written,
        }
    print(json.dumps(results, indent=1))
    record("fuzz", rounded(results), sys.argv)


if __name__ == "__main__":
    main()
