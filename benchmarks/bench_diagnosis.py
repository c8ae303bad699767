"""Are the diagnosis's sentences right? Pools whose fault is known, and the share of sentences that name it.

python -m benchmarks.bench_diagnosis            some minutes on one core
python -m benchmarks.bench_diagnosis --quick    two draws of each kind, nothing recorded

Writes results/diagnosis.json. Every kind has its own draws of 100 examples, at N = 32 and N = 512. A sentence is right
where it names the fault that was put there, with the number of examples within two, or a tenth, where it names one.
Exact form. The thresholds of the tests were set on draws of other seeds.
"""

import argparse
import re
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np

from benchmarks.record import record
from kit.device import n_cores
from local_eval.audit import diagnose, null_quality, sentence
from local_eval.audit.simulate import heavy_tailed, simulated_pools
from local_eval.metric import exact_epsilon

SIZES = (32, 512)
N_EXAMPLES = 100
N_DRAWS = 20
COMMON = 0.05
EXACT = partial(exact_epsilon, n_workers=1)


def plain(n_models, rng, **population):
    return simulated_pools(n_models, N_EXAMPLES, rng, **{"common": COMMON, **population})


def copies(n_models, rng):
    u, r = plain(n_models, rng)
    return np.repeat(u[:1], n_models, axis=0), r


def reshaped(n_models, rng, residuals):
    """Unlearned residuals of another shape, of mean 0 and variance 1, beside retrained ones that are normal."""
    _, r = plain(n_models, rng, common=0.0)
    mean, sd = rng.normal(3.0, 2.0, N_EXAMPLES), np.exp(0.3 * rng.normal(size=N_EXAMPLES))
    standard = rng.normal(size=r.shape)
    return mean + sd * residuals(rng, r.shape), mean + sd * standard


def two_humps(rng, size):
    return 0.9 * rng.choice([-1.0, 1.0], size=size) + np.sqrt(1 - 0.81) * rng.normal(size=size)


def one_sided(rng, size):
    return rng.exponential(size=size) - 1


def far_out(rng, size):
    """One run in ten lies widely, and the others narrowly, about the same mean."""
    wide = rng.random(size) < 0.1
    return np.where(wide, 2.7, 0.55) * rng.normal(size=size)


def halves(n_models, rng, size=0.9):
    """Half of the checkpoints too high and half too low on every example, with retraining's mean and spread."""
    sign = np.repeat([-1.0, 1.0], [n_models // 2, n_models - n_models // 2])
    return reshaped(
        n_models, rng, lambda rng, shape: size * sign[:, None] + np.sqrt(1 - size**2) * rng.normal(size=shape)
    )


def some_untouched(n_models, rng, share=0.25, shift=4.0):
    """This share of the checkpoints has not forgotten: too high on every example."""
    u, r = plain(n_models, rng)
    u[: int(share * n_models)] += shift * r.std(axis=0)
    return u, r


def some_examples(n_models, rng, n_off, shift, both_ways=False):
    u, r = plain(n_models, rng)
    sign = np.resize([-1.0, 1.0], n_off) if both_ways else 1.0
    u[:, :n_off] += sign * shift * r[:, :n_off].std(axis=0)
    return u, r


def wrong_spread(n_models, rng, n_off, ratio):
    u, r = plain(n_models, rng)
    mean = u[:, :n_off].mean(axis=0)
    u[:, :n_off] = mean + ratio * (u[:, :n_off] - mean)
    return u, r


# kind -> how to draw it, what the sentence must say, and how many examples it must count (None: none)
KINDS = {
    "as retraining": (plain, "are near what retraining gives", None),
    "as retraining, heavy tails": (partial(plain, noise=heavy_tailed), "are near what retraining gives", None),
    "as retraining, strong common pull": (partial(plain, common=0.3), "are near what retraining gives", None),
    "too sure": (partial(plain, shift=1.0, shift_sd=0.3), "too sure of the forgotten examples", None),
    "not sure enough": (partial(plain, shift=-1.0, shift_sd=0.3), "not sure enough of the forgotten", None),
    "off both ways": (partial(plain, shift_sd=2.0), "too sure of some examples and not sure enough", None),
    "too narrow": (partial(plain, spread=0.5), "vary too little between runs: their", None),
    "too wide": (partial(plain, spread=2.0), "vary too much between runs", None),
    "narrow and a little off": (partial(plain, spread=0.3, shift=0.3), "vary too little between runs: their", None),
    "copies of one": (copies, "they all give the same confidences", None),
    "two humps": (partial(reshaped, residuals=two_humps), "two humps", None),
    "one-sided": (partial(reshaped, residuals=one_sided), "one-sided, with a longer tail above", None),
    "a few runs far out": (partial(reshaped, residuals=far_out), "some runs lie far out", None),
    "half too high, half too low": (halves, "are of two kinds", None),
    "a quarter not unlearned": (some_untouched, "are of two kinds", None),
    "15 examples 5 sd above": (partial(some_examples, n_off=15, shift=5.0), "are too sure of them", 15),
    "20 examples 5 sd off": (partial(some_examples, n_off=20, shift=5.0, both_ways=True), "some above and some", 20),
    "40 examples 3 sd above": (partial(some_examples, n_off=40, shift=3.0), "are too sure of them", 40),
    "15 examples a quarter as wide": (partial(wrong_spread, n_off=15, ratio=0.25), "times as widely (median)", 15),
}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two draws of each kind, nothing recorded")
    options = parser.parse_args(argv[1:])
    n_draws = 2 if options.quick else N_DRAWS
    cases = [(kind, n_models, n_draws) for n_models in SIZES for kind in KINDS]
    with ProcessPoolExecutor(min(2, n_cores())) as pool:
        rows = []
        for row in pool.map(measure, *zip(*cases, strict=True)):
            rows.append(row)
            print(row, flush=True)
    results = {"n_examples": N_EXAMPLES, "common": COMMON, "draws": n_draws, "form": "exact", "kinds": rows}
    for n_models in SIZES:
        shares = [row["right"] for row in rows if row["n_models"] == n_models]
        results[f"right_at_{n_models}"] = round(float(np.mean(shares)), 4)
    results["right"] = round(float(np.mean([row["right"] for row in rows])), 4)
    print(f"right sentences: {results['right']:.1%}")
    if not options.quick:
        print(record("diagnosis", results, argv))


def measure(kind: str, n_models: int, n_draws: int) -> dict:
    """The share of right sentences of a kind; the wrong ones, shortened to what they say."""
    draw, says, n_off = KINDS[kind]
    rng = np.random.default_rng([list(KINDS).index(kind), n_models, 3])
    wrong, shares = Counter(), []
    for i in range(n_draws):
        u, r = draw(n_models, rng)
        null = null_quality(r, n_models, attack=EXACT, n_halvings=3, n_simulated=100, seed=i)
        found = diagnose(u, r, attack=EXACT, null=null)
        text = sentence(found)
        shares.append(found.share)
        if not is_right(text, says, n_off):
            wrong[text.split("; ")[0]] += 1
    return {
        "kind": kind,
        "n_models": n_models,
        "right": 1 - sum(wrong.values()) / n_draws,
        "share_of_null": round(float(np.mean(shares)), 3),
        "wrong": dict(wrong),
    }


def is_right(text: str, says: str, n_off: int | None) -> bool:
    """Whether a sentence says what it should, and counts examples rightly where it should and only there."""
    counted = re.search(r"do not treat (\d+) of", text)
    if n_off is None:
        return says in text and counted is None
    return says in text and counted is not None and abs(int(counted[1]) - n_off) <= max(2, 0.1 * n_off)


if __name__ == "__main__":
    main(sys.argv)
