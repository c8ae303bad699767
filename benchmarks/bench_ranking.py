"""How many models does it take to rank methods? Eight simulated methods, ranked at each N and at N = 512.

python -m benchmarks.bench_ranking            about eight minutes on one core
python -m benchmarks.bench_ranking --quick    few repetitions, nothing recorded

Writes results/ranking.json, from which the thresholds of `local_eval.audit.ranking_warning` come, and
results/ranking.png. Every method is Gaussian, on 100 examples, beside its own retrained models.
"""

import argparse
import sys
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from benchmarks.record import RESULTS, record
from local_eval.audit.simulate import simulated_pools
from local_eval.metric import exact_epsilon, forgetting_quality, grid_epsilon

METHODS = {
    "perfect": {},
    "shift 0.25": {"shift": 0.25, "shift_sd": 0.1},
    "shift 0.5": {"shift": 0.5, "shift_sd": 0.2},
    "shift 1": {"shift": 1.0, "shift_sd": 0.4},
    "shift 2": {"shift": 2.0, "shift_sd": 0.8},
    "spread 0.8": {"spread": 0.8, "spread_sd": 0.1},
    "spread 0.5": {"spread": 0.5, "spread_sd": 0.1},
    "shift 0.5, spread 0.8": {"shift": 0.5, "shift_sd": 0.2, "spread": 0.8, "spread_sd": 0.1},
}
SIZES = (3, 4, 8, 16, 32, 64, 128, 256)
N_EXAMPLES = 100
COMMON = 0.05


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions, nothing recorded")
    options = parser.parse_args(argv[1:])
    forms = {"exact": (partial(exact_epsilon, n_workers=1), 200, 40), "grid": (grid_epsilon, 40, 8)}
    results = {"n_examples": N_EXAMPLES, "common": COMMON, "methods": list(METHODS)}
    for form, (attack, n_repetitions, n_truth) in forms.items():
        if options.quick:
            n_repetitions, n_truth = 4, 2
        results[form] = rank(attack, n_repetitions, n_truth)
        print(form, *results[form]["by_size"], sep="\n  ")
    if not options.quick:
        print(record("ranking", results, argv))
        print(plot(results))


def rank(attack, n_repetitions: int, n_truth: int) -> dict:
    rng = np.random.default_rng(0)
    expected = np.mean([qualities(attack, 512, rng) for _ in range(n_truth)], axis=0)
    pairs = list(combinations(range(len(METHODS)), 2))
    rows = []
    for n_models in SIZES:
        found = np.array([qualities(attack, n_models, rng) for _ in range(n_repetitions)])
        right = [(found[:, i] - found[:, j]) * (expected[i] - expected[j]) > 0 for i, j in pairs]
        mean = found.mean(axis=0)
        turned = [(i, j) for i, j in pairs if (mean[i] - mean[j]) * (expected[i] - expected[j]) < 0]
        rows.append(
            {
                "n_models": n_models,
                "kendall": round(float(np.mean([tau(row, expected) for row in found])), 3),
                "pairs_in_right_order": round(float(np.mean(right)), 3),
                "best_method_first": round(float((found.argmax(axis=1) == expected.argmax()).mean()), 3),
                "turned_on_average": [f"{list(METHODS)[i]} / {list(METHODS)[j]}" for i, j in turned],
                "mean_quality": [round(float(x), 4) for x in mean],
            }
        )
    return {"quality_at_512": [round(float(x), 4) for x in expected], "repetitions": n_repetitions, "by_size": rows}


def qualities(attack, n_models: int, rng: np.random.Generator) -> np.ndarray:
    pools = [simulated_pools(n_models, N_EXAMPLES, rng, common=COMMON, **method) for method in METHODS.values()]
    return np.array([forgetting_quality(attack(*pool).epsilon, n_models) for pool in pools])


def tau(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.nan_to_num(kendalltau(a, b).statistic))


def plot(results: dict) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for form, mark in (("exact", "^-"), ("grid", "o-")):
        rows = results[form]["by_size"]
        sizes = [row["n_models"] for row in rows]
        left.plot(sizes, [row["kendall"] for row in rows], mark, label=f"{form} form")
        right.plot(sizes, [row["best_method_first"] for row in rows], mark, label=f"{form} form")
    left.set(ylabel="Kendall's tau with the order at N = 512")
    right.set(ylabel="share of runs with the best method first")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="models in each sample, N", ylim=(0, 1.02))
        axes.set_xticks(SIZES, [str(n) for n in SIZES])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    path = RESULTS / "ranking.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


if __name__ == "__main__":
    main(sys.argv)
