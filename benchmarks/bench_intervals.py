"""Do the intervals hold? Coverage on simulated pools whose truth is known.

python -m benchmarks.bench_intervals            about half an hour on two cores
python -m benchmarks.bench_intervals --only quality shifted    parts and populations again, the others as recorded
python -m benchmarks.bench_intervals --quick    few repetitions, nothing recorded

Writes results/intervals.json and results/intervals.png. The truth of an interval for F is the mean F of independent
draws of models and examples at the same size; that of an interval for the score likewise, with accuracies that follow
the models' confidences. Nominal level everywhere: 95%. Pairs of methods differ by their shift alone, so that it is
known which expected score is above.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from scipy.special import expit
from scipy.stats import norm
from tqdm import tqdm

from benchmarks.record import RESULTS, record
from local_eval.audit import (
    Accuracies,
    epsilon_lower_bounds,
    null_quality,
    predict_quality,
    probability_above,
    quality_interval,
    resample,
    score_interval,
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
FORMS = {"exact": partial(exact_epsilon, n_workers=1), "grid": grid_epsilon}
# models, examples, share of a model's variance that pulls all its examples the same way
SIZES = {
    "exact": ((32, 100, 0.0), (32, 100, 0.1), (64, 500, 0.05), (128, 200, 0.1), (512, 100, 0.05)),
    "grid": ((32, 100, 0.1), (64, 100, 0.05)),
}
PAIRS = ((32, 100, 0.1), (64, 200, 0.05))
SAID = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)  # ends of the classes of what is said of a pair
LARGEST = 512  # models: what predictions are for


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="parts and populations to measure again")
    parser.add_argument("--quick", action="store_true", help="few repetitions, nothing recorded")
    options = parser.parse_args(argv[1:])
    n = 8 if options.quick else options.repetitions
    jobs = jobs_of(n, quick=options.quick)
    results = {}
    if options.only:
        kinds = {part for part, _ in jobs}, POPULATIONS.keys()
        parts, populations = ((kind & set(options.only)) or kind for kind in kinds)
        jobs = [(part, job) for part, job in jobs if part in parts and job.args[0] in populations]
        results = json.loads((RESULTS / "intervals.json").read_text())["results"]
    start = time.perf_counter()
    with ProcessPoolExecutor(options.workers) as pool:
        futures = [(part, pool.submit(job)) for part, job in jobs]
        found = [(part, future.result()) for part, future in tqdm(futures)]
    for part, row in found:
        rows = results.setdefault(part, [])
        at = next((i for i, old in enumerate(rows) if case(old) == case(row)), len(rows))
        rows[at : at + 1] = [row]
    results["lowest_coverage_of_quality"] = min(row["coverage"] for row in results["quality"])
    results["lowest_coverage_of_score"] = min(row["coverage"] for row in results["score"])
    results["lowest_coverage_of_prediction_at_512"] = min(row["coverage"] for row in results["prediction_at_512"])
    results["seconds_again" if options.only else "seconds"] = round(time.perf_counter() - start)
    for name, rows in results.items():
        print(name, *(rows if isinstance(rows, list) else [rows]), sep="\n  ")
    if not options.quick:
        print(record("intervals", results, argv))
        print(plot(results))


def case(row: dict) -> list:
    """What tells a row from the others of its part."""
    return [row.get(key) for key in ("population", "form", "n_models", "from_models", "n_examples", "common", "shift")]


def jobs_of(n: int, quick: bool) -> list[tuple[str, partial]]:
    """(part of the results, job that gives one of its rows), the long ones first."""
    predictions = [
        ("prediction_at_512", partial(prediction_coverage, name, form, m, n // 2 if form == "exact" else n // 4))
        for form, sizes in (("grid", (64,)), ("exact", (64, 32, 128)))
        for m in (sizes[:1] if quick else sizes)
        for name in POPULATIONS
    ]
    intervals = [
        ("quality", partial(coverage, name, form, n, *size, n_resamples=20 if form == "exact" else 10))
        for form in FORMS
        for size in (SIZES[form][:1] if quick else SIZES[form])
        for name in POPULATIONS
    ]
    scores = [
        ("score", partial(score_coverage, name, form, n, *size, n_resamples=20 if form == "exact" else 10))
        for form, size in (("exact", (32, 100, 0.1)), ("exact", (64, 200, 0.05)), ("grid", (32, 100, 0.1)))
        for name in POPULATIONS
    ]
    pairs = [("probability_above", partial(calibration, "shifted", "exact", 5 * n, *size)) for size in PAIRS]
    nulls = [
        ("null", partial(null_coverage, name, form, n if form == "exact" else n // 4))
        for form in FORMS
        for name in ("identical", "heavy tails")
    ]
    bounds = [("epsilon_lower_bound", partial(lower_bound_failures, shift, max(1, n // 10))) for shift in (0, 1, 2)]
    return [*predictions, *intervals, *scores, *pairs, *nulls, *bounds]


def draws(name: str, n_models: int, n_examples: int, common: float, seed: int):
    rng = np.random.default_rng(seed)
    while True:
        yield simulated_pools(n_models, n_examples, rng, common=common, **POPULATIONS[name])


def true_quality(name: str, attack, n_models: int, n_examples: int, common: float, n_draws: int) -> float:
    pools = draws(name, n_models, n_examples, common, seed=1)
    return float(np.mean([forgetting_quality(attack(*next(pools)).epsilon, n_models) for _ in range(n_draws)]))


def coverage(name, form, n_repetitions, n_models, n_examples, common, n_resamples) -> dict:
    attack = FORMS[form]
    truth = true_quality(name, attack, n_models, n_examples, common, 2 * n_repetitions)
    pools = draws(name, n_models, n_examples, common, seed=2)
    found = [
        quality_interval(resample(*next(pools), attack=attack, n_resamples=n_resamples, seed=i))
        for i in range(n_repetitions)
    ]
    case = case_of(name, form, n_models, n_examples, common)
    return case | judged(found, truth, [interval.value for interval in found])


def case_of(name: str, form: str, n_models: int, n_examples: int, common: float) -> dict:
    return {"population": name, "form": form, "n_models": n_models, "n_examples": n_examples, "common": common}


def judged(intervals, truth: float, values) -> dict:
    """How intervals hold against the truth and against how far values lie apart."""
    return {
        "repetitions": len(intervals),
        "truth": round(truth, 5),
        "coverage": covered(intervals, truth),
        "true_standard_error": round(float(np.std(values, ddof=1)), 6),
        "mean_standard_error": round(float(np.mean([interval.standard_error for interval in intervals])), 6),
    }


def accuracies_of(unlearned: np.ndarray, retrained: np.ndarray, rng: np.random.Generator) -> Accuracies:
    """Which of 300 retain and 200 test examples each model gets right: a model that is surer of the forgotten examples
    than others is right more often, unlearned ones less often than retrained ones."""
    found = []
    for n_examples in (300, 200):
        difficulty = rng.normal(1.5, 1.0, n_examples)
        for sample, off in ((unlearned, -0.3), (retrained, 0.0)):
            pull = sample.mean(axis=1) - sample.mean()
            chance = expit(difficulty + off + 0.3 * pull[:, None] / pull.std())
            found.append((rng.random(chance.shape) < chance).astype(float))
    return Accuracies(*found)


def score_coverage(name, form, n_repetitions, n_models, n_examples, common, n_resamples) -> dict:
    """The truth is the mean score of independent draws of models, of examples and of accuracies."""
    attack = FORMS[form]
    pools, rng = draws(name, n_models, n_examples, common, seed=6), np.random.default_rng(7)
    drawn = ((*pool, accuracies_of(*pool, rng)) for pool in pools)
    scores = [
        forgetting_quality(attack(u, r).epsilon, n_models) * accuracies.ratio
        for u, r, accuracies in islice(drawn, 2 * n_repetitions)
    ]
    truth = float(np.mean(scores))
    found = [
        score_interval(resample(u, r, attack=attack, n_resamples=n_resamples, seed=i), accuracies)
        for i, (u, r, accuracies) in enumerate(islice(drawn, n_repetitions))
    ]
    return case_of(name, form, n_models, n_examples, common) | judged(found, truth, scores)


def calibration(name, form, n_pairs, n_models, n_examples, common, n_resamples: int = 20) -> dict:
    """Among pairs of methods of which `probability_above` says p, how many are as it says. Both have the same retrained
    models and examples, models of their own, and shifts drawn alike: the smaller one has the higher expected score."""
    said, right = [], []
    for seed in range(n_pairs):
        shifts = np.random.default_rng([8, seed]).normal(0.5, 0.08, 2)
        options = POPULATIONS[name] | {"common": common}
        pools = [
            simulated_pools(2 * n_models, n_examples, np.random.default_rng([9, seed]), **options | {"shift": shift})
            for shift in shifts
        ]
        retrained = pools[0][1][:n_models]
        methods = pools[0][0][:n_models], pools[1][0][n_models:]
        resampled = [resample(u, retrained, attack=FORMS[form], n_resamples=n_resamples, seed=seed) for u in methods]
        accuracies = [accuracies_of(u, retrained, np.random.default_rng([10, seed, i])) for i, u in enumerate(methods)]
        p = probability_above(*resampled, *accuracies)
        said.append(max(p, 1 - p))
        right.append((p >= 0.5) == (shifts[0] < shifts[1]))
    said, right = np.array(said), np.array(right)
    place = np.searchsorted(SAID[1:-1], said, side="right")
    classes = []
    for i in range(len(SAID) - 1):
        if (inside := place == i).any():
            facts = {
                "said": round(float(np.mean(np.array(said)[inside])), 3),
                "true": round(float(right[inside].mean()), 3),
            }
            classes.append({"from": SAID[i], "to": SAID[i + 1], "pairs": int(inside.sum()), **facts})
    return case_of(name, form, n_models, n_examples, common) | {
        "pairs": n_pairs,
        "said": round(float(np.mean(said)), 4),
        "true": round(float(right.mean()), 4),
        "classes": classes,
    }


def covered(intervals, truth: float) -> float:
    return round(float(np.mean([interval.low <= truth <= interval.high for interval in intervals])), 4)


def null_coverage(
    name: str, form: str, n_repetitions: int, n_models: int = 64, n_examples: int = 200, common: float = 0.05
) -> dict:
    """The null from the retrained pool, where the truth is F of two independent pools; and the share of it, whose truth
    for one more such pool is 1."""
    attack = FORMS[form]
    plain = {**POPULATIONS[name], "shift_sd": 0.0}  # retrained against retrained: nothing is shifted
    rng = np.random.default_rng(1)
    pools = (simulated_pools(n_models, n_examples, rng, common=common, **plain) for _ in range(2 * n_repetitions))
    truth = float(np.mean([forgetting_quality(attack(*pool).epsilon, n_models) for pool in pools]))
    rng = np.random.default_rng(3)
    nulls, shares = [], []
    for i in range(n_repetitions):
        unlearned, retrained = simulated_pools(n_models, n_examples, rng, common=common, **plain)
        null = null_quality(retrained, attack=attack, n_halvings=10, seed=i)
        nulls.append(null.quality)
        halves = resample(unlearned, retrained, attack=attack, n_resamples=20, seed=i)
        shares.append(share_of_attainable(halves, null))
    return {
        "population": name,
        "form": form,
        "n_models": n_models,
        "repetitions": n_repetitions,
        "truth": round(truth, 5),
        "mean": round(float(np.mean([null.value for null in nulls])), 5),
        "coverage": covered(nulls, truth),
        "share_mean": round(float(np.mean([share.value for share in shares])), 4),
        "share_coverage_of_1": covered(shares, 1.0),
    }


def prediction_coverage(
    name: str, form: str, n_models: int, n_repetitions: int, n_examples: int = 200, common: float = 0.05
) -> dict:
    """The truth is F of pools of 512; the interval is that of the prediction from pools of n_models."""
    attack = FORMS[form]
    truth = true_quality(name, attack, LARGEST, n_examples, common, max(8, n_repetitions))
    pools = draws(name, n_models, n_examples, common, seed=4)
    found = []
    for i in range(n_repetitions):
        pool = next(pools)
        resamples = resample(*pool, attack=attack, n_resamples=10, seed=i)
        found.append(predict_quality(*pool, attack=attack, resamples=resamples, n_simulated=200, seed=i).quality)
    return {
        "population": name,
        "form": form,
        "from_models": n_models,
        "n_examples": n_examples,
        "repetitions": n_repetitions,
        "truth": round(truth, 5),
        "mean": round(float(np.mean([interval.value for interval in found])), 5),
        "coverage": covered(found, truth),
        "relative_error": round(float(np.std([np.log(interval.value / truth) for interval in found])), 4),
        "stated_relative_error": round(float(np.mean([i.standard_error / i.value for i in found])), 4),
    }


def lower_bound_failures(
    shift: float, n_repetitions: int, n_models: int = 64, n_examples: int = 60, failure: float = 0.05
) -> dict:
    """How often the Clopper-Pearson bound lies above the true epsilon of two Gaussians a given shift apart."""
    rng = np.random.default_rng(5)
    truth = gaussian_epsilon(shift)
    size = (n_models, n_examples)
    bounds = np.concatenate(
        [
            epsilon_lower_bounds(rng.normal(size=size) + shift, rng.normal(size=size), failure=failure, seed=i).epsilon
            for i in range(n_repetitions)
        ]
    )
    return {
        "shift": shift,
        "n_models": n_models,
        "bounds": len(bounds),
        "true_epsilon": round(truth, 3),
        "mean_bound": round(float(bounds.mean()), 3),
        "stated_failure": failure,
        "failures": round(float((bounds > truth).mean()), 4),
    }


def gaussian_epsilon(shift: float, delta: float = 1e-5) -> float:
    """Supremum over thresholds of the definition's epsilon for N(shift, 1) against N(0, 1)."""
    t = np.linspace(-9, 9 + shift, 20001)
    rates = norm.sf(t), norm.cdf(t - shift)
    forms = [np.log(np.maximum(1 - delta - a, 1e-300)) - np.log(b) for a, b in (rates, rates[::-1])]
    return float(max(0.0, np.max(forms)))


def plot(results: dict) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, predictions, bounds = (results[part] for part in ("quality", "prediction_at_512", "epsilon_lower_bound"))
    figure, axes = plt.subplots(2, 2, figsize=(12, 9), layout="constrained", height_ratios=(1.7, 1))
    (left, right), (low_left, low_right) = axes
    names = [f"{r['population']}, {r['form']}, N {r['n_models']}, |S| {r['n_examples']}, {r['common']:g}" for r in rows]
    dots(left, names, [r["coverage"] for r in rows], "coverage of the 95% interval for F")
    names = [f"{r['population']}, {r['form']}, from N {r['from_models']}" for r in predictions]
    dots(right, names, [r["coverage"] for r in predictions], "coverage of the 95% interval predicted for N = 512")
    true, said = ([r[key] for r in rows] for key in ("true_standard_error", "mean_standard_error"))
    low_left.plot([min(true), max(true)], [min(true), max(true)], color="0.6", label="equal")
    low_left.plot(true, said, "o", color="#0072b2")
    low_left.set(xscale="log", yscale="log", xlabel="true standard error of F", ylabel="mean of the estimates")
    low_left.legend()
    where = range(len(bounds))
    low_right.bar(where, [100 * b["failures"] for b in bounds], color="#0072b2", width=0.5)
    low_right.axhline(100 * bounds[0]["stated_failure"], color="#d55e00", linestyle="--", label="stated")
    low_right.set_xticks(where, [f"shift {b['shift']:g}: true {b['true_epsilon']:.2f}" for b in bounds])
    low_right.set(ylabel="lower bounds of epsilon above the truth, %")
    low_right.legend()
    path = RESULTS / "intervals.png"
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path


def dots(axes, names: list[str], values: list[float], label: str) -> None:
    axes.axvline(0.95, color="0.6", label="nominal")
    axes.axvline(0.90, color="0.6", linestyle=":", label="goal")
    axes.plot(values, range(len(names)), "o", color="#0072b2")
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel=label, xlim=(min(0.8, *values) - 0.01, 1.01))
    axes.legend(loc="lower left", fontsize=8)


if __name__ == "__main__":
    main(sys.argv)
