"""The main job from nothing, timed: original, N retrained and N unlearned models, score.

python -m benchmarks.bench_main_job NAME -- <options of `python -m local_eval run`>

Runs in a fresh work folder and writes results/NAME.json: the table, seconds of each phase and what the original
model reached. A second method then reuses the retrained models; its seconds stand beside it.
"""

import json
import subprocess
import sys
import tempfile
import time

from benchmarks.record import record

SECOND_METHOD = "random_perturbation"


def main(argv: list[str]) -> None:
    if len(argv) < 4 or argv[2] != "--":
        sys.exit(__doc__)
    name, options = argv[1], argv[3:]
    with tempfile.TemporaryDirectory() as folder:
        first = run(options, folder)
        second = run([*options, "--method", SECOND_METHOD], folder)
    method, nothing, null = first["rows"]
    results = {
        "seconds": first["wall_s"],
        "phases_s": first["seconds"],
        "original": {part: nothing[f"{part}_accuracy"] for part in ("retain", "forget", "test")},
        "retrained_forget_accuracy": null["forget_accuracy"],
        "rows": [short(row) for row in (method, second["rows"][0], nothing, null)],
        "second_method_seconds": second["wall_s"],
    }
    public = ["FOLDER" if "/" in option and "image-folder:" not in option else option for option in argv]
    public = ["image-folder:PATH" if option.startswith("image-folder:") else option for option in public]
    path = record(name, results, [argv[0], *public[1:]])
    print(json.dumps(results, indent=1))
    print(f"original at {nothing['test_accuracy']:.1%} test accuracy, {first['wall_s']:.0f} s in all: {path}")


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
