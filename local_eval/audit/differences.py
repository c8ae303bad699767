"""In what unlearned confidences differ from retrained ones beyond chance: which examples' means and spreads, the shape,
and whether the checkpoints are of two kinds.

All take confidences (n_models, n_examples). What is tested per example is corrected for the number of examples
(Benjamini and Hochberg 1995, false discovery rate); what is tested for all together takes whole models as its units,
since one model moves many examples the same way.
"""

import warnings

import numpy as np
from scipy import stats

RATE = 0.02  # false discoveries among the examples named
_N_PERMUTATIONS = 40
_MOST_EXAMPLES = 200  # looked at for the shape: more add time, not power
_GAUSSIAN_SPLIT = 2 / np.pi  # of a Gaussian's variance, what the best cut in two explains


def discoveries(p_values: np.ndarray, rate: float = RATE) -> np.ndarray:
    """Which of n hypotheses are rejected so that at most `rate` of the rejected are true ones on average, (n,) bool."""
    n = len(p_values)
    order = np.argsort(p_values)
    passes = p_values[order] <= rate * np.arange(1, n + 1) / n
    n_rejected = passes.nonzero()[0].max(initial=-1) + 1
    rejected = np.zeros(n, dtype=bool)
    rejected[order[:n_rejected]] = True
    return rejected


def shifted(unlearned: np.ndarray, retrained: np.ndarray) -> np.ndarray:
    """Examples whose means differ, by Welch's t-test, (n_examples,) bool."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # constants: seen to below
        p = stats.ttest_ind(unlearned, retrained, axis=0, equal_var=False).pvalue
    same = unlearned.mean(axis=0) == retrained.mean(axis=0)  # two constants: 0 / 0
    return discoveries(np.where(np.isnan(p), np.where(same, 1.0, 0.0), p))


def other_spread(unlearned: np.ndarray, retrained: np.ndarray) -> np.ndarray:
    """Examples whose spreads differ, by Brown and Forsythe's test, (n_examples,) bool."""
    around = [np.abs(x - np.median(x, axis=0)) for x in (unlearned, retrained)]
    return shifted(*around)


def shape_difference(unlearned: np.ndarray, retrained: np.ndarray, seed: int = 0) -> float:
    """How many standard deviations the shapes of the two samples are further apart than by chance.

    Means and spreads are matched first; the statistic is the mean over examples of the Kolmogorov-Smirnov distance, and
    chance is what models exchanged between the samples give.
    """
    rng = np.random.default_rng(seed)
    if unlearned.shape[1] > _MOST_EXAMPLES:
        chosen = rng.choice(unlearned.shape[1], _MOST_EXAMPLES, replace=False)
        unlearned, retrained = unlearned[:, chosen], retrained[:, chosen]
    n_u = len(unlearned)
    both = np.concatenate([_standardised(unlearned), _standardised(retrained)])
    seen = _ks_distance(both[:n_u], both[n_u:])
    by_chance = []
    for _ in range(_N_PERMUTATIONS):
        mixed = both[rng.permutation(len(both))]
        by_chance.append(_ks_distance(_standardised(mixed[:n_u]), _standardised(mixed[n_u:])))
    return float((seen - np.mean(by_chance)) / max(np.std(by_chance, ddof=1), 1e-12))


def _standardised(sample: np.ndarray) -> np.ndarray:
    spread = sample.std(axis=0, ddof=1)
    return (sample - sample.mean(axis=0)) / np.where(spread > 0, spread, 1.0)


def _ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over examples of the largest difference of the two empirical distribution functions."""
    order = np.argsort(np.concatenate([a, b]), axis=0, kind="stable")
    steps = np.where(order < len(a), 1 / len(a), -1 / len(b))
    return float(np.abs(np.cumsum(steps, axis=0)).max(axis=0).mean())


def two_kinds(unlearned: np.ndarray, retrained: np.ndarray) -> float:
    """Share of the models in the smaller of two groups, 0 where the models are of one kind.

    Along the direction in which the unlearned models differ most, in retrained standard deviations, the best cut in two
    explains 64% of the variance if they are Gaussian. They are of two kinds where it explains far more, and the two
    groups are further apart than retrained models ever are along it.
    """
    scale = np.maximum(retrained.std(axis=0, ddof=1), 1e-12)
    u, r = (unlearned - unlearned.mean(axis=0)) / scale, (retrained - retrained.mean(axis=0)) / scale
    if not np.any(u):
        return 0.0
    direction = np.linalg.svd(u, full_matrices=False)[2][0]
    along, chance = np.sort(u @ direction), r @ direction
    n = len(along)
    sizes = np.arange(1, n)
    low = np.cumsum(along)[:-1] / sizes
    high = (along.sum() - np.cumsum(along)[:-1]) / (n - sizes)
    between = sizes * (n - sizes) / n * (high - low) ** 2 / max(((along - along.mean()) ** 2).sum(), 1e-12)
    cut = int(between.argmax())
    smaller = min(sizes[cut], n - sizes[cut])
    # Of small samples the best cut explains more by chance: about 0.6 / sqrt(n) at three standard deviations.
    far_more = between[cut] > _GAUSSIAN_SPLIT + 0.13 + 0.6 / np.sqrt(n)
    apart = high[cut] - low[cut] > 4 * chance.std(ddof=1)
    return float(smaller / n) if far_more and apart and smaller >= 3 else 0.0
