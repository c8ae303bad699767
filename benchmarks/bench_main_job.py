"""The main job from nothing, timed: original, N retrained and N unlearned models, score.

python -m benchmarks.bench_main_job NAME [--second METHOD] -- <options of `python -m local_eval run`>

Runs in a fresh work folder and writes results/NAME.json: the table, seconds of each phase and what the original
model reached. With --second another method then reuses the retrained models; its seconds stand beside it.
"""

import json
import subprocess
import sys
import tempfile
import time

from benchmarks.record import record


def main(argv: list[str]) -> None:
    if "--" not in argv or len(argv) < 4:
        sys.exit(__doc__)
    own, options = argv[1 : argv.index("--")], argv[argv.index("--") + 1 :]
    name, second = own[0], own[own.index("--second") + 1] if "--second" in own else None
    with tempfile.TemporaryDirectory() as folder:
        first = run(options, folder)
        other = run([*options, "--method", second], folder) if second else None
    path = record(name, results_of(first, other), [argv[0], *own, "--", *map(public, options)])
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


def public(option: str) -> str:
    """An option as it is recorded: no one's folders."""
    return "image-folder:PATH" if option.startswith("image-folder:") else option


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
