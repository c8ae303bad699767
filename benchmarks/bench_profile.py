"""The profile's projection for 64 checkpoints from three measured ones, against the truth; ten trials.

Each trial profiles and then emits in one process with one thread, smallconv on synthetic images. The stated uncertainty
is tested, too.

python -m benchmarks.bench_profile [--trials 10] [--n 64]
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.bench_emit import problem
from benchmarks.record import record, rounded
from kit.competition import TensorLoader
from kit.emit import emit
from kit.memory import keep_freed_memory
from kit.methods import get_method
from kit.tools.profile import profile

METHODS = (
    ("finetune", []),
    ("random_perturbation", []),
    ("ssd", ["epochs=1"]),
    ("retrain", ["epochs=1.5"]),
    ("l2_penalty", []),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--n-images", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as `python -m kit` does
    rows = []
    for trial in range(options.trials):
        name, settings = METHODS[trial % len(METHODS)]
        method = get_method(name, settings)
        model, loaders = problem("smallconv", options.n_images, TensorLoader)
        common = {"n_checkpoints": options.n, "seed": trial, "progress": False}
        found = profile(method, model, loaders, n_measured=3, **common)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            result = emit(method, model, loaders, out=Path(folder), **common)
            seconds = time.perf_counter() - start
        assert result.faults == []
        error = found.project() / seconds - 1
        rows.append(
            {
                "method": name,
                "projected_s": found.project(),
                "uncertainty_s": found.uncertainty_s,
                "truth_s": seconds,
                "relative_error": error,
                "within_its_uncertainty": abs(found.project() - seconds) <= found.uncertainty_s,
                "load_average": os.getloadavg()[0],
            }
        )
        print(f"{name}: {found.project():.2f} s projected, {seconds:.2f} s taken, {error:+.1%}", flush=True)
    results = {
        "checkpoints": options.n,
        "measured": 3,
        "within_10_percent": sum(abs(row["relative_error"]) <= 0.1 for row in rows),
        "within_its_uncertainty": sum(row["within_its_uncertainty"] for row in rows),
        "trials": len(rows),
        "rows": rows,
    }
    record("profile", rounded(results), sys.argv)


if __name__ == "__main__":
    main()
