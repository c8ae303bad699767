"""Does the sentence beside a score name the right fault? Pools whose fault is known, 14 kinds, with 32 and 512 models.

python -m benchmarks.bench_diagnosis            a quarter of an hour on one core
python -m benchmarks.bench_diagnosis --quick    two draws of each, nothing recorded

Writes results/diagnosis.json: for each kind and number of models the share of draws with the right sentence.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
from tqdm import tqdm

from benchmarks.record import record
from local_eval.audit import diagnose, sentence
from local_eval.audit.simulate import heavy_tailed, simulated_pools
from local_eval.metric import exact_epsilon

N_EXAMPLES = 100
SIZES = (32, 512)
COMMON = 0.05

Pools = tuple[np.ndarray, np.ndarray]


def moments_kept(noise: Callable, rng: np.random.Generator, n_models: int) -> Pools:
    """Unlearned confidences of retrained mean and spread and the shape of `noise` (mean 0, variance 1)."""
    _, r = simulated_pools(n_models, N_EXAMPLES, rng, common=COMMON)
    return r.mean(axis=0) + r.std(axis=0, ddof=1) * noise(rng, r.shape), r


def two_humps(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return (rng.choice([-1.0, 1.0], size) + 0.25 * rng.normal(size=size)) / np.sqrt(1 + 0.25**2)


def one_sided(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return rng.exponential(size=size) - 1


def some_examples(share: float, off: float, rng: np.random.Generator, n_models: int) -> Pools:
    u, r = simulated_pools(n_models, N_EXAMPLES, rng, common=COMMON)
    chosen = np.arange(N_EXAMPLES) < share * N_EXAMPLES
    return u + off * chosen * r.std(axis=0), r


def two_kinds(share: float, low: float, high: float, rng: np.random.Generator, n_models: int) -> Pools:
    u, r = simulated_pools(n_models, N_EXAMPLES, rng, common=COMMON)
    off = np.where(np.arange(n_models) < share * n_models, high, low)
    return u + off[:, None] * r.std(axis=0), r


def copies(rng: np.random.Generator, n_models: int) -> Pools:
    _, r = simulated_pools(n_models, N_EXAMPLES, rng, common=COMMON)
    return np.repeat(r[:1], n_models, axis=0), r


def simulated(rng: np.random.Generator, n_models: int, **population) -> Pools:
    return simulated_pools(n_models, N_EXAMPLES, rng, common=COMMON, **population)


# What is drawn, and words of the sentence that it deserves.
KINDS: dict[str, tuple[Callable[[np.random.Generator, int], Pools], str]] = {
    "as retraining": (simulated, "near what retraining gives"),
    "as retraining, heavy tails": (partial(simulated, noise=heavy_tailed), "near what retraining gives"),
    "too sure": (partial(simulated, shift=1.5, shift_sd=0.3), "too sure of the forgotten"),
    "not sure enough": (partial(simulated, shift=-1.5, shift_sd=0.3), "not sure enough of the forgotten"),
    "both ways": (partial(simulated, shift_sd=2.0), "too sure of some examples and not sure enough of others"),
    "too narrow": (partial(simulated, spread=0.4, spread_sd=0.1), "vary too little"),
    "too wide": (partial(simulated, spread=2.5, spread_sd=0.1), "vary too much"),
    "copies of one": (copies, "they all give the same confidences"),
    "15% of the examples far too high": (partial(some_examples, 0.15, 5.0), "15 of 100 are not forgotten"),
    "20% of the examples far too low": (partial(some_examples, 0.2, -5.0), "20 of 100 are forgotten too much"),
    "40% of the examples too high": (partial(some_examples, 0.4, 3.0), "too sure of the forgotten"),
    "two humps": (partial(moments_kept, two_humps), "of another shape"),
    "one-sided": (partial(moments_kept, one_sided), "of another shape"),
    "half too high, half too low": (partial(two_kinds, 0.5, -1.5, 1.5), "are of two kinds"),
    "a quarter far too high": (partial(two_kinds, 0.25, 0.0, 4.0), "are of two kinds"),
}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two draws of each kind, nothing recorded")
    options = parser.parse_args(argv[1:])
    found = measure(2 if options.quick else 20)
    for kind, by_size in found["right"].items():
        print(f"{kind:34s}", *(f"N = {n}: {share:.0%}" for n, share in by_size.items()), sep="  ")
    print(f"in all {found['share']:.1%} of {found['n']} sentences are right")
    if not options.quick:
        print(record("diagnosis", found, argv))


def measure(n_draws: int, sizes: tuple[int, ...] = SIZES) -> dict:
    rng = np.random.default_rng(0)
    right, wrong = {}, Counter()
    bar = tqdm(total=len(KINDS) * len(sizes) * n_draws, desc="diagnosing")
    for kind, (draw, words) in KINDS.items():
        right[kind] = {}
        for n_models in sizes:
            hits = 0
            for _ in range(n_draws):
                said = sentence(diagnose(*draw(rng, n_models), attack=partial(exact_epsilon, n_threads=1)))
                hits += _fits(said, words)
                if not _fits(said, words):
                    wrong[f"{kind}, N = {n_models}: {said.split(';')[0]}"] += 1
                bar.update()
            right[kind][n_models] = hits / n_draws
    shares = [share for by_size in right.values() for share in by_size.values()]
    return {
        "n_draws": n_draws,
        "n": n_draws * len(shares),
        "share": float(np.mean(shares)),
        "right": right,
        "wrong": wrong,
    }


def _fits(said: str, words: str) -> bool:
    """A count of examples may be two off, as one in fifty of those named is by chance."""
    number, of, rest = words.partition(" of 100 ")
    if not of:
        return words in said
    return any(f"{int(number) + off} of 100 {rest}" in said for off in (-2, -1, 0, 1, 2))


if __name__ == "__main__":
    main(sys.argv)
