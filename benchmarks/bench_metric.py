"""Time and memory of the score: plain tiling, grid form and exact form in one run.

python -m benchmarks.bench_metric            all of it, about two minutes
python -m benchmarks.bench_metric --quick    small sizes, for a look

Writes results/metric.json and results/metric.png. The tiled form (tests/reference_metric.py) is timed on a few examples
and its time for all of them is that much per example; the others are timed whole, the best of three runs.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.record import RESULTS, record, rounded
from local_eval.metric import exact_epsilon, forgetting_quality, grid_epsilon

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from reference_metric import tiled_grid_epsilon

ATTACKS = {"grid": grid_epsilon, "exact": exact_epsilon}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=512)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--tiled-examples", type=int, default=3, help="examples the tiled form is timed on")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing recorded")
    parser.add_argument("--peak", choices=[*ATTACKS, "tiled", "nothing"], help=argparse.SUPPRESS)
    options = parser.parse_args(argv[1:])
    if options.quick:
        options.models, options.examples, options.tiled_examples = 64, 100, 1
    n, n_examples = options.models, options.examples
    if options.peak:
        print(json.dumps(peak_mib(options.peak, n, n_examples)))
        return

    # children first: a child's peak counter starts at what its parent holds
    peaks = {name: peak_in_child(name, n, n_examples) for name in ("nothing", *ATTACKS, "tiled")}
    memory = {f"{name}_peak_mib": round(peaks[name] - peaks["nothing"]) for name in (*ATTACKS, "tiled")}

    u, r = samples(n, n_examples)
    tiled = best_time(lambda: [tiled_grid_epsilon(u[:, i], r[:, i]) for i in range(options.tiled_examples)], 1)
    results = {"n_models": n, "n_examples": n_examples, "tiled_s_per_example": tiled / options.tiled_examples}
    for name, attack in ATTACKS.items():
        seconds = best_time(lambda attack=attack: attack(u, r), 3)
        epsilon = attack(u, r).epsilon
        results[name] = {
            "seconds": seconds,
            "times_faster_than_tiled": results["tiled_s_per_example"] * n_examples / seconds,
            "null_mean_epsilon": epsilon.mean(),
            "null_forgetting_quality": forgetting_quality(epsilon, n),
        }
    results["memory"] = memory

    sizes = [32, 64, 128] if options.quick else [32, 64, 128, 256, 512, 1024]
    counts = [25, 50, 100] if options.quick else [125, 250, 500, 1000, 2000]
    results["growth"] = {
        "with_models": [{"n_models": m, "n_examples": 200, **times(m, 200, tiled_too=m <= 512)} for m in sizes],
        "with_examples": [{"n_models": n, "n_examples": s, **times(n, s, tiled_too=False)} for s in counts],
    }
    results = rounded(results)
    print(json.dumps(results, indent=1))
    if not options.quick:
        print(record("metric", results, argv))
        print(plot(results))


def samples(n_models: int, n_examples: int):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n_models, n_examples)), rng.normal(size=(n_models, n_examples))


def best_time(job, n_runs: int) -> float:
    def seconds():
        start = time.perf_counter()
        job()
        return time.perf_counter() - start

    return min(seconds() for _ in range(n_runs))


def times(n_models: int, n_examples: int, tiled_too: bool) -> dict:
    u, r = samples(n_models, n_examples)
    found = {f"{name}_s": best_time(lambda a=attack: a(u, r), 2) for name, attack in ATTACKS.items()}
    if tiled_too:
        found["tiled_s_per_example"] = best_time(lambda: tiled_grid_epsilon(u[:, 0], r[:, 0]), 1)
    return found


def peak_mib(name: str, n_models: int, n_examples: int) -> float:
    import resource

    u, r = samples(n_models, n_examples)
    if name == "tiled":
        tiled_grid_epsilon(u[:, 0], r[:, 0])
    elif name != "nothing":
        ATTACKS[name](u, r)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_in_child(name: str, n_models: int, n_examples: int) -> float:
    command = [sys.executable, "-m", "benchmarks.bench_metric", "--peak", name]
    command += ["--models", str(n_models), "--examples", str(n_examples)]
    root = Path(__file__).parent.parent
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout)


def plot(results: dict) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    by_models, by_examples = results["growth"]["with_models"], results["growth"]["with_examples"]
    with_tiled = [row for row in by_models if "tiled_s_per_example" in row]
    left.plot(
        [row["n_models"] for row in with_tiled],
        [row["tiled_s_per_example"] for row in with_tiled],
        "s-",
        color="0.5",
        label="plain tiling",
    )
    for name, mark in (("grid", "o-"), ("exact", "^-")):
        seconds = [row[f"{name}_s"] / row["n_examples"] for row in by_models]
        left.plot([row["n_models"] for row in by_models], seconds, mark, label=f"{name} form")
        seconds = [row[f"{name}_s"] for row in by_examples]
        right.plot([row["n_examples"] for row in by_examples], seconds, mark, label=f"{name} form")
    left.set(xlabel="models in each sample, N", ylabel="seconds per example")
    right.set(xlabel=f"examples, |S| (N = {results['n_models']})", ylabel="seconds in all")
    for axes, ticks in ((left, [r["n_models"] for r in by_models]), (right, [r["n_examples"] for r in by_examples])):
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    path = RESULTS / "metric.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


if __name__ == "__main__":
    main(sys.argv)
