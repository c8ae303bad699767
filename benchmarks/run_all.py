"""The benchmarks that fit a time limit, one after the other, and what they found on this machine in one record.

python -m benchmarks.run_all --limit 30m [--only score growth]

Writes results/machine_NAME.json, NAME after the processor and its cores, and leaves the records of each benchmark as
they are. A benchmark is begun where what it took on two cores (below) still fits; one that fails is named there.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import machine, record, rounded
from kit.budget import parse_duration

# What each took on two cores, in seconds: those that need no data but their own.
BENCHMARKS = {
    "growth": (90, []),
    "bench_training": (60, []),
    "bench_score": (60, ["--examples", "1000"]),
    "bench_emit": (240, ["--n", "8", "--rounds", "1"]),
    "bench_kills": (180, ["--n", "20"]),
    "bench_fuzz": (120, ["--n", "10000"]),
    "bench_fisher": (300, []),
    "bench_profile": (600, []),
    "bench_metric": (600, []),
    "bench_ranking": (1800, []),
    "bench_diagnosis": (3600, []),
    "bench_intervals": (4600, []),
}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=parse_duration, default=1800.0, help="such as 90s, 30m, 2h (30m)")
    parser.add_argument("--only", nargs="+", choices=[short(name) for name in BENCHMARKS], help="these of them alone")
    options = parser.parse_args(argv[1:])
    began = time.perf_counter()
    found, left_out = {}, []
    for name, (takes_s, words) in BENCHMARKS.items():
        if options.only and short(name) not in options.only:
            continue
        if time.perf_counter() - began + takes_s > options.limit:
            left_out.append(short(name))
            continue
        found[short(name)] = outcome(name, words, options.limit - (time.perf_counter() - began))
        print(f"{short(name)}: {found[short(name)]['took_s']:.0f} s", flush=True)
    results = {"benchmarks": found, "left_out": left_out, "seconds": time.perf_counter() - began}
    print(record(f"machine_{machine_name()}", rounded(results), argv))


def short(name: str) -> str:
    return name.removeprefix("bench_")


def outcome(name: str, words: list[str], limit_s: float) -> dict:
    """What one benchmark recorded, and how long it took; or its last line where it recorded nothing."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", f"benchmarks.{name}", *words]
        environment = {**os.environ, "BENCHMARK_RESULTS": folder}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
            )
            said = (done.stderr or done.stdout).strip().splitlines()[-1:]
        except subprocess.TimeoutExpired:
            said = [f"not finished within {limit_s:.0f} s"]
        took_s = time.perf_counter() - start
        records = sorted(Path(folder).glob("*.json"))
        if not records:
            return {"took_s": took_s, "failed": said[0] if said else "said nothing"}
        return {"took_s": took_s, **{path.stem: json.loads(path.read_text())["results"] for path in records}}


def machine_name() -> str:
    found = machine()
    return re.sub(r"[^a-z0-9]+", "_", f"{found['cpu']} {found['cores']} cores".lower()).strip("_")


if __name__ == "__main__":
    main(sys.argv)
