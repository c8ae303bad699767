"""The main job from nothing, timed: original, N retrained and N unlearned models, score.

python -m benchmarks.bench_main_job NAME [--second METHOD] [--keep FOLDER] [--avx2] -- <options of `local_eval run`>

Runs in a fresh work folder and writes results/NAME.json: the table, seconds of each phase and what the original
model reached. With --second another method then reuses the retrained models; its seconds stand beside it. With --keep
the models stay in that folder, which must not be there yet. --avx2: with no instructions beyond AVX2, as on a processor
that has none: sums are rounded otherwise, and the nets are others.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import record


def main(argv: list[str]) -> None:
    if "--" not in argv:
        sys.exit(__doc__)
    options = argv[argv.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--second", metavar="METHOD")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--avx2", action="store_true")
    own = parser.parse_args(argv[1 : argv.index("--")])
    if own.avx2:
        os.environ |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = temporary
        if own.keep:
            own.keep.mkdir(parents=True)
            folder = str(own.keep)
        first = run(options, folder)
        other = run([*options, "--method", own.second], folder) if own.second else None
    words = [*(["--second", own.second] if own.second else []), *(["--avx2"] if own.avx2 else [])]
    path = record(own.name, results_of(first, other), [argv[0], own.name, *words, "--", *public(options)])
    print(path.read_text())


def results_of(first: dict, other: dict | None = None) -> dict:
    """What is kept of a run's report, and of a second method's."""
    method, nothing, null = first["rows"]
    rows = [method, *([other["rows"][0]] if other else []), nothing, null]
    return {
        "seconds": first["wall_s"],
        "phases_s": {phase: round(seconds, 1) for phase, seconds in first["seconds"].items()},
        "original": {part: round(nothing[f"{part}_accuracy"], 4) for part in ("retain", "forget", "test")},
        "rows": [short(row) for row in rows],
        **({"second_method_seconds": other["wall_s"]} if other else {}),
    }


def public(options: list[str]) -> list[str]:
    """Options as they are recorded: no one's folders."""
    shown = ["image-folder:PATH" if option.startswith("image-folder:") else option for option in options]
    for number, option in enumerate(shown[:-1]):
        if option in ("--cache-dir", "--data-root"):
            shown[number + 1] = "PATH"
    return shown


def run(options: list[str], folder: str) -> dict:
    """The report of one run, and its seconds from the start of the process to its end."""
    command = [sys.executable, "-m", "local_eval", "run", *options, "--work-dir", folder, "--json", "--quiet"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return {**json.loads(done.stdout), "wall_s": round(time.perf_counter() - start, 1)}


def short(row: dict) -> dict:
    return {
        key: round(value, 4) if isinstance(value, float) else value for key, value in row.items() if key != "epsilon"
    }


if __name__ == "__main__":
    main(sys.argv)
