"""Time and peak memory of `python -m local_eval score --confidences`, start, intervals and all; beside one attack
after the other.

python -m benchmarks.bench_score             512 x 512 models on 1,000 and on 10,000 examples: minutes on quiet cores
python -m benchmarks.bench_score --quick     32 models on 40 examples, nothing recorded
python -m benchmarks.bench_score --beside FOLDER    another checkout of the project, such as an older one, in turns

With --beside both must print the same, to the last digit.

Writes results/score.json. Every command is a process of its own, whose wall time, CPU time (the system's count of all
its threads) and largest memory are taken when it ends. The plain form of the grid (tests/reference_metric.py) is timed
on a few examples in the same run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.record import record, rounded
from local_eval.metric import MetricSpec, grid_epsilon

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from reference_metric import grid_one_by_one

ROOT = Path(__file__).parent.parent


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=512)
    parser.add_argument("--examples", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing recorded")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another checkout, timed in turns with this one")
    options = parser.parse_args(argv[1:])
    if options.quick:
        options.models, options.examples = 32, [40]
    began = time.perf_counter()
    results = {"n_models": options.models, "score": [], "attack": attack(options.models, 64)}
    start = [measured([sys.executable, "-c", "import local_eval.commands.arrays"])[0] for _ in range(5)]
    results["start"] = min(start, key=lambda found: found["s"])
    with tempfile.TemporaryDirectory() as folder:
        for n_examples in options.examples:
            path = Path(folder) / "confidences.npz"
            u, r = samples(options.models, n_examples)
            np.savez(path, unlearned_confidence=u, retrained_confidence=r)
            del u, r  # a new process begins with the memory of its parent in its account
            for kind in ([], ["--brief"]):
                command = [sys.executable, "-m", "local_eval", "score", "--confidences", str(path), "--quiet", *kind]
                found, said = measured(command)
                row = {"n_examples": n_examples, "brief": bool(kind), **found}
                if options.beside:
                    row["beside"], other = measured(command, options.beside)
                    row |= {"equal": said == other, "times_faster": row["beside"]["s"] / row["s"]}
                    row["times_less_cpu"] = row["beside"]["cpu_s"] / row["cpu_s"]
                results["score"].append(row)
                print(row, flush=True)
    results["seconds"] = time.perf_counter() - began
    results = rounded(results)
    print(json.dumps(results, indent=1))
    if not options.quick:
        print(record("score", results, argv))


def samples(n_models: int, n_examples: int):
    """An unlearned sample a little off and a little narrow, beside a retrained one."""
    rng = np.random.default_rng(0)
    mean, spread = rng.normal(2, 2, n_examples), np.exp(rng.normal(0, 0.3, n_examples))
    off = 0.3 * rng.normal(size=n_examples)
    u, r = rng.normal(size=(2, n_models, n_examples))
    return mean + spread * (off + 0.8 * u), mean + spread * r


def measured(command: list[str], folder: Path = ROOT) -> tuple[dict[str, float], bytes]:
    """Wall and CPU seconds of a process with its own, the most memory that it held, and what it printed."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=said)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        if status:
            raise RuntimeError(f"{' '.join(command)}: ended with {os.waitstatus_to_exitcode(status)}")
        seconds = time.perf_counter() - start
        said.seek(0)
        printed = said.read()
    in_kib = 1024 if sys.platform == "darwin" else 1
    cpu_s = usage.ru_utime + usage.ru_stime
    return {"s": seconds, "cpu_s": cpu_s, "peak_mib": usage.ru_maxrss / in_kib / 1024}, printed


def attack(n_models: int, n_examples: int) -> dict[str, float]:
    """CPU seconds an example of the grid form, one thread, and of the same attacks one after the other."""
    u, r = samples(n_models, n_examples)
    grid_epsilon(u[:, :2], r[:, :2])  # its tables
    start = time.process_time()
    found = grid_epsilon(u, r, n_workers=1).epsilon
    grid_s = (time.process_time() - start) / n_examples
    few = range(4)
    start = time.process_time()
    plain = [grid_one_by_one(u[:, i], r[:, i], MetricSpec()) for i in few]
    plain_s = (time.process_time() - start) / len(few)
    if not np.array_equal(plain, found[: len(few)]):
        raise RuntimeError("the two forms differ")
    return {"grid_s_per_example": grid_s, "plain_s_per_example": plain_s, "times_faster": plain_s / grid_s}


if __name__ == "__main__":
    main(sys.argv)
