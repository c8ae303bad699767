"""Do the intervals hold? Coverage on simulated pools whose truth is known.

python -m benchmarks.bench_intervals            about a quarter of an hour on one core
python -m benchmarks.bench_intervals --quick    few repetitions, nothing recorded

Writes results/intervals.json and results/intervals.png. The truth of an interval for F is the mean F of independent
draws of models and examples at the same size. Nominal level everywhere: 95%.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import norm

from benchmarks.record import RESULTS, record
from local_eval.audit import (
    epsilon_lower_bounds,
    null_quality,
    predict_quality,
    quality_interval,
    resample,
    share_of_attainable,
)
from local_eval.audit.simulate import heavy_tailed, simulated_pools
from local_eval.metric import exact_epsilon, forgetting_quality, grid_epsilon

POPULATIONS = {
    "identical": {},
    "shifted": {"shift": 0.5, "shift_sd": 0.25},
    "spread": {"spread": 0.7, "spread_sd": 0.2},
    "heavy tails": {"shift_sd": 0.2, "noise": heavy_tailed},
}
SIZES = ((32, 100, 0.0), (32, 100, 0.1), (64, 500, 0.05), (128, 200, 0.1), (512, 100, 0.05))
EXACT = partial(exact_epsilon, n_threads=1)
GRID = partial(grid_epsilon, n_threads=1)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="few repetitions, nothing recorded")
    options = parser.parse_args(argv[1:])
    n, sizes = (10, SIZES[:1]) if options.quick else (options.repetitions, SIZES)
    start = time.perf_counter()
    rows = [
        coverage(name, EXACT, "exact", n, *size, n_resamples=20)
        for size in sizes
        for name in POPULATIONS
        if show(name, *size)
    ]
    rows.append(coverage("shifted", GRID, "grid", n // 2, 32, 100, 0.1, n_resamples=10))
    results = {
        "quality": rows,
        "null": [null_coverage(name, n // 5) for name in ("identical", "heavy tails")],
        "prediction_at_512": [prediction_coverage(name, m, n // 8) for m in (32, 128) for name in POPULATIONS],
        "epsilon_lower_bound": lower_bound_failures(max(1, n // 10)),
        "lowest_coverage_of_quality": min(row["coverage"] for row in rows),
        "seconds": round(time.perf_counter() - start),
    }
    for name, found in results.items():
        print(name, *(found if isinstance(found, list) else [found]), sep="\n  ")
    if not options.quick:
        print(record("intervals", results, argv))
        print(plot(rows))


def show(*what) -> bool:
    print("...", *what, file=sys.stderr)
    return True


def draws(name: str, n_models: int, n_examples: int, common: float, seed: int):
    rng = np.random.default_rng(seed)
    while True:
        yield simulated_pools(n_models, n_examples, rng, common=common, **POPULATIONS[name])


def true_quality(name: str, attack, n_models: int, n_examples: int, common: float, n_draws: int) -> float:
    pools = draws(name, n_models, n_examples, common, seed=1)
    return float(np.mean([forgetting_quality(attack(*next(pools)).epsilon, n_models) for _ in range(n_draws)]))


def coverage(name, attack, form, n_repetitions, n_models, n_examples, common, n_resamples) -> dict:
    truth = true_quality(name, attack, n_models, n_examples, common, 2 * n_repetitions)
    pools = draws(name, n_models, n_examples, common, seed=2)
    found = [
        quality_interval(resample(*next(pools), attack=attack, n_resamples=n_resamples, seed=i))
        for i in range(n_repetitions)
    ]
    values = np.array([interval.value for interval in found])
    return {
        "population": name,
        "form": form,
        "n_models": n_models,
        "n_examples": n_examples,
        "common": common,
        "repetitions": n_repetitions,
        "truth": round(truth, 5),
        "coverage": covered(found, truth),
        "true_standard_error": round(float(values.std(ddof=1)), 6),
        "mean_standard_error": round(float(np.mean([interval.standard_error for interval in found])), 6),
    }


def covered(intervals, truth: float) -> float:
    return round(float(np.mean([interval.low <= truth <= interval.high for interval in intervals])), 4)


def null_coverage(
    name: str, n_repetitions: int, n_models: int = 64, n_examples: int = 200, common: float = 0.05
) -> dict:
    """The null from the retrained pool, where the truth is F of two independent pools; and the share of it, whose truth
    for one more such pool is 1."""
    truth = true_quality(name, EXACT, n_models, n_examples, common, 4 * n_repetitions)
    plain = {**POPULATIONS[name], "shift_sd": 0.0}
    rng = np.random.default_rng(3)
    nulls, shares = [], []
    for i in range(n_repetitions):
        unlearned, retrained = simulated_pools(n_models, n_examples, rng, common=common, **plain)
        null = null_quality(retrained, attack=EXACT, n_halvings=10, seed=i)
        nulls.append(null.quality)
        shares.append(share_of_attainable(resample(unlearned, retrained, attack=EXACT, n_resamples=20, seed=i), null))
    if plain["shift_sd"] != POPULATIONS[name].get("shift_sd", 0.0):  # the truth of the unshifted population
        pools = (simulated_pools(n_models, n_examples, rng, common=common, **plain) for _ in range(4 * n_repetitions))
        truth = float(np.mean([forgetting_quality(EXACT(*pool).epsilon, n_models) for pool in pools]))
    return {
        "population": name,
        "n_models": n_models,
        "repetitions": n_repetitions,
        "truth": round(truth, 5),
        "mean": round(float(np.mean([null.value for null in nulls])), 5),
        "coverage": covered(nulls, truth),
        "share_mean": round(float(np.mean([share.value for share in shares])), 4),
        "share_coverage_of_1": covered(shares, 1.0),
    }


def prediction_coverage(name: str, n_models: int, n_repetitions: int, n_examples: int = 200, common: float = 0.05):
    truth = true_quality(name, EXACT, 512, n_examples, common, max(8, n_repetitions))
    pools = draws(name, n_models, n_examples, common, seed=4)
    found = [predict_quality(*next(pools), attack=EXACT, n_simulated=200, seed=i).quality for i in range(n_repetitions)]
    return {
        "population": name,
        "from_models": n_models,
        "repetitions": n_repetitions,
        "truth": round(truth, 5),
        "mean": round(float(np.mean([interval.value for interval in found])), 5),
        "coverage": covered(found, truth),
    }


def lower_bound_failures(n_repetitions: int, n_models: int = 64, n_examples: int = 60, failure: float = 0.05) -> dict:
    """How often the Clopper-Pearson bound lies above the true epsilon of two Gaussians a given shift apart."""
    rng = np.random.default_rng(5)
    result = {"stated_failure": failure, "n_models": n_models}
    for shift in (0.0, 1.0, 2.0):
        truth = gaussian_epsilon(shift)
        bounds = np.concatenate(
            [
                epsilon_lower_bounds(
                    rng.normal(size=(n_models, n_examples)) + shift,
                    rng.normal(size=(n_models, n_examples)),
                    failure=failure,
                    seed=i,
                ).epsilon
                for i in range(n_repetitions)
            ]
        )
        result[f"shift {shift:g}"] = {
            "true_epsilon": round(truth, 3),
            "mean_bound": round(float(bounds.mean()), 3),
            "failures": round(float((bounds > truth).mean()), 4),
        }
    return result


def gaussian_epsilon(shift: float, delta: float = 1e-5) -> float:
    """Supremum over thresholds of the definition's epsilon for N(shift, 1) against N(0, 1)."""
    t = np.linspace(-9, 9 + shift, 20001)
    rates = norm.sf(t), norm.cdf(t - shift)
    forms = [np.log(np.maximum(1 - delta - a, 1e-300)) - np.log(b) for a, b in (rates, rates[::-1])]
    return float(max(0.0, np.max(forms)))


def plot(rows: list[dict]) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    names = [f"{r['population']}, {r['form']}, N {r['n_models']}, |S| {r['n_examples']}, {r['common']:g}" for r in rows]
    left.axvline(0.95, color="0.6", label="nominal")
    left.axvline(0.90, color="0.6", linestyle=":", label="goal")
    left.plot([r["coverage"] for r in rows], range(len(rows)), "o")
    left.set_yticks(range(len(rows)), names, fontsize=6)
    left.invert_yaxis()
    left.set(xlabel="coverage of the 95% interval for F", xlim=(0.8, 1.01))
    left.legend(loc="lower left", fontsize=7)
    true, said = ([r[key] for r in rows] for key in ("true_standard_error", "mean_standard_error"))
    right.plot([min(true), max(true)], [min(true), max(true)], color="0.6")
    right.plot(true, said, "o")
    right.set(xscale="log", yscale="log", xlabel="true standard error of F", ylabel="mean of the estimates")
    path = RESULTS / "intervals.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


if __name__ == "__main__":
    main(sys.argv)
