"""What tells unlearned models from retrained ones, by tests that chance fails once in a hundred.

Each example alone: are its mean and its spread those of retraining (corrected for the number of examples)? All of them
together: mean, spread, shape. And the models: are they of one kind? Models are exchanged between the samples, all
examples of a model at once, so what pulls the examples of a model together counts as chance too.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri, stdtr

from local_eval.metric.chunks import over_chunks

LEVEL = 0.01
_EXCHANGES = 99
_CUTS = ndtri(np.arange(1, 10) / 10)
_ONE_KIND = 0.15  # of the variance left within the two parts of a sample cut best; 0.36 for a normal one
_MOST_EXAMPLES = 300  # drawn for the test of the shape, which takes the longest
_SMALLEST_KIND = 3  # models, or a twentieth of them: fewer are outliers


@dataclass(frozen=True)
class Findings:
    """off (n_examples,): mean or spread differ for that example alone; above (n_examples,): its unlearned mean is the
    larger. shift, spread, shape: whether all examples together differ so; rest: whether those that are not off still
    differ. kinds: sizes of the two kinds of unlearned models, the larger first; None for one kind.
    skewness, excess: medians over examples, unlearned less retrained, of the third and the fourth moment."""

    off: np.ndarray
    above: np.ndarray
    shift: bool
    spread: bool
    shape: bool
    rest: bool
    kinds: tuple[int, int] | None
    skewness: float
    excess: float


def find(unlearned: np.ndarray, retrained: np.ndarray, seed: int = 0) -> Findings:
    """unlearned (n_unlearned, n_examples), retrained (n_retrained, n_examples): confidences, float64."""
    rng = np.random.default_rng(seed)
    both = (unlearned, retrained)
    distances = tuple(np.abs(x - np.median(x, axis=0)) for x in both)
    squares = tuple((x - x.mean(axis=0)) ** 2 for x in both)
    off = _off(np.minimum(1, 2 * np.minimum(_p_of_means(*both), _p_of_spreads(both, distances)))) & _matters(*both)
    exchanges = _exchanges(len(unlearned), len(retrained), rng)
    of_mean, *of_spread = (_squares(exchanges, np.concatenate(x)) for x in (both, distances, squares))
    standard = tuple(_standardised(x) for x in both)
    chosen = np.sort(rng.permutation(len(off))[:_MOST_EXAMPLES])
    of_shape = _shape_squares(np.concatenate(both)[:, chosen], exchanges > 0)
    skewness, third_r, excess, fourth_r = (np.median(np.mean(z**power, axis=0)) for power in (3, 4) for z in standard)
    return Findings(
        off=off,
        above=unlearned.mean(axis=0) > retrained.mean(axis=0),
        shift=_stands_out(of_mean),
        spread=all(map(_stands_out, of_spread)),
        shape=_stands_out(of_shape),
        rest=bool((~off).any())
        and (
            _stands_out(of_mean[:, ~off])
            or all(_stands_out(values[:, ~off]) for values in of_spread)
            or _stands_out(of_shape[:, ~off[chosen]])
        ),
        kinds=_kinds(unlearned, retrained),
        skewness=float(skewness - third_r),
        excess=float(excess - fourth_r),
    )


def _p_of_means(u: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Welch's test of equal means, (n_examples,); constants that differ are as unlike as can be."""
    parts = [x.var(axis=0, ddof=1) / len(x) for x in (u, r)]
    difference, variance = u.mean(axis=0) - r.mean(axis=0), parts[0] + parts[1]
    constant = variance <= 1e-20 * np.maximum(1.0, u.mean(axis=0) ** 2)
    variance = np.where(constant, 1.0, variance)
    freedom = variance**2 / np.where(
        constant, 1.0, sum(v**2 / (len(x) - 1) for v, x in zip(parts, (u, r), strict=True))
    )
    p = 2 * stdtr(freedom, -np.abs(difference) / np.sqrt(variance))
    return np.where(constant, np.where(np.abs(difference) <= 1e-9, 1.0, 0.0), p)


def _p_of_spreads(both: tuple[np.ndarray, np.ndarray], distances: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The larger p, (n_examples,), of two tests of equal spread: distances from the median (Brown and Forsythe 1974),
    which few far runs do not sway, and variances with the fourth moment of all examples (Layard 1973), which another
    shape of the same variance does not sway."""
    tiny = np.finfo(float).tiny
    variances = [np.maximum(x.var(axis=0, ddof=1), tiny) for x in both]
    error = 0.0
    for x in both:
        standard = _standardised(x)
        fourth = np.mean(standard**4, axis=0)
        varies = fourth > 0
        error += (max(fourth[varies].mean(), 1.5) - 1) / len(x) if varies.any() else 0.0
    z = np.log(variances[0] / variances[1]) / np.sqrt(max(error, tiny))
    return np.maximum(2 * ndtr(-np.abs(z)), _p_of_means(*distances))


def _off(p: np.ndarray) -> np.ndarray:
    """Which examples differ: none unless one does after correction for all of them (Bonferroni); then all whose share
    of false alarms stays below LEVEL (Benjamini and Hochberg 1995)."""
    n, order = len(p), np.argsort(p)
    off = np.zeros(n, bool)
    if p[order[0]] * n > LEVEL:
        return off
    passed = np.flatnonzero(p[order] <= LEVEL * np.arange(1, n + 1) / n)
    off[order[: passed[-1] + 1]] = True
    return off


def _exchanges(n_u: int, n_r: int, rng: np.random.Generator) -> np.ndarray:
    """Weights of a difference of means, (1 + n_exchanges, n_u + n_r): as it is, then with models exchanged."""
    weights = np.concatenate([np.full(n_u, 1 / n_u), np.full(n_r, -1 / n_r)])
    return np.stack([weights, *(rng.permutation(weights) for _ in range(_EXCHANGES))])


def _squares(exchanges: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Squared differences of means over their variance, (1 + n_exchanges, n_examples); values (n_models, n_examples)
    of both samples. The variance is that of both together, so that one example cannot outweigh the others."""
    centred = values - values.mean(axis=0)
    variance = centred.var(axis=0)
    square = (exchanges @ centred) ** 2
    return np.divide(square, variance, out=np.zeros_like(square), where=variance > 0)


def _stands_out(squares: np.ndarray) -> bool:
    total = squares.mean(axis=1)
    return bool((1 + np.sum(total[1:] >= total[0])) / len(total) <= LEVEL)


def _standardised(sample: np.ndarray) -> np.ndarray:
    sd = sample.std(axis=0, ddof=1)
    return (sample - sample.mean(axis=0)) / np.where(sd > 0, sd, 1.0)


def _shape_squares(values: np.ndarray, is_first: np.ndarray) -> np.ndarray:
    """Squared distances of the two distributions, each with its own mean and spread taken out, (1 + n_exchanges,
    n_examples), as sums over cuts; values (n_models, n_examples), is_first (1 + n_exchanges, n_models)."""

    def squares(first: np.ndarray) -> np.ndarray:
        u, r = _standardised(values[first]), _standardised(values[~first])
        return sum((np.mean(u <= cut, axis=0) - np.mean(r <= cut, axis=0)) ** 2 for cut in _CUTS)

    return over_chunks(lambda some: np.stack([squares(first) for first in is_first[some]]), len(is_first), 4)


def _matters(u: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Whether mean or spread of an example are off by what costs points, (n_examples,): many models see less."""
    sd_u, sd_r = (np.maximum(x.std(axis=0, ddof=1), np.finfo(float).tiny) for x in (u, r))
    return (np.abs(u.mean(axis=0) - r.mean(axis=0)) > 0.3 * sd_r) | (np.abs(np.log(sd_u / sd_r)) > np.log(1.25))


def _kinds(unlearned: np.ndarray, retrained: np.ndarray) -> tuple[int, int] | None:
    """Sizes of two kinds of unlearned models along their first principal component, of which retrained ones know less.

    Ranks among both samples, as normal scores: no single confidence makes a kind.
    """
    from scipy.stats import rankdata  # most of a second to import

    n_u, n = len(unlearned), len(unlearned) + len(retrained)
    scores = ndtri((rankdata(np.concatenate([unlearned, retrained]), axis=0) - 0.5) / n)
    u, r = (_first_component(x) for x in (scores[:n_u], scores[n_u:]))
    if u.var() < 1.5 * r.var():
        return None
    within, n_low = _best_cut(np.sort(u))
    small, large = sorted((n_low, n_u - n_low))
    if within >= _ONE_KIND or small < max(_SMALLEST_KIND, n_u / 20):
        return None
    return large, small


def _first_component(scores: np.ndarray) -> np.ndarray:
    centred = scores - scores.mean(axis=0)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    return vectors[:, -1] * np.sqrt(max(values[-1], 0.0))


def _best_cut(ordered: np.ndarray) -> tuple[float, int]:
    """Share of the variance within the parts of a sorted sample cut in two where that is least; size of the lower."""
    n, total = len(ordered), ordered.var() * len(ordered)
    if total <= 0:
        return 1.0, 0
    below = np.arange(1, n)
    sums = np.cumsum(ordered)
    between = (sums[:-1] / below - sums[-1] / n) ** 2 * below * n / (n - below)
    best = int(np.argmax(between))
    return float(1 - between[best] / total), best + 1
