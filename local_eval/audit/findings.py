"""What tells unlearned models from retrained ones, by tests that chance fails once in a hundred.

Each example alone: are its mean and its spread those of retraining (corrected for the number of examples)? All of them
together: mean, spread, shape. And the models: are they of one kind? Models are exchanged between the samples, all
examples of a model at once, so what pulls the examples of a model together counts as chance too.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata
from scipy.stats import t as student_t

LEVEL = 0.01
_EXCHANGES = 99
_CUTS = norm.ppf(np.arange(1, 10) / 10)
_ONE_KIND = 0.15  # of the variance left within the two parts of a sample cut best; 0.36 for a normal one
_SMALLEST_KIND = 3  # models, or a twentieth of them: fewer are outliers


@dataclass(frozen=True)
class Findings:
    """off (n_examples,): mean or spread differ for that example alone; above (n_examples,): its unlearned mean is the
    larger. shift, spread, shape: whether all examples together differ so; rest: whether those that are not off still
    differ in mean or spread. kinds: sizes of the two kinds of unlearned models, the larger first; None for one kind.
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
    distances = tuple(np.abs(x - np.median(x, axis=0)) for x in both)  # Brown and Forsythe 1974
    p = np.minimum(1, 2 * np.minimum(_p_of_means(*both), _p_of_means(*distances)))
    off = _holm(p, LEVEL)
    exchanges = _exchanges(len(unlearned), len(retrained), rng)
    of_mean, of_spread = (_squares(exchanges, np.concatenate(x)) for x in (both, distances))
    standard = tuple(_standardised(x) for x in both)
    of_shape = sum(_squares(exchanges, feature) for feature in _shape_features(np.concatenate(standard)))
    skewness, third_r, excess, fourth_r = (np.median(np.mean(z**power, axis=0)) for power in (3, 4) for z in standard)
    return Findings(
        off=off,
        above=unlearned.mean(axis=0) > retrained.mean(axis=0),
        shift=_stands_out(of_mean),
        spread=_stands_out(of_spread),
        shape=_stands_out(of_shape),
        rest=bool((~off).any()) and (_stands_out(of_mean[:, ~off]) or _stands_out(of_spread[:, ~off])),
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
    p = 2 * student_t.sf(np.abs(difference) / np.sqrt(variance), freedom)
    return np.where(constant, np.where(np.abs(difference) <= 1e-9, 1.0, 0.0), p)


def _holm(p: np.ndarray, level: float) -> np.ndarray:
    """Which hypotheses fall when one false alarm among all is as rare as `level`."""
    order = np.argsort(p)
    passed = np.minimum.accumulate(p[order] <= level / np.arange(len(p), 0, -1))
    rejected = np.zeros(len(p), bool)
    rejected[order] = passed
    return rejected


def _exchanges(n_u: int, n_r: int, rng: np.random.Generator) -> np.ndarray:
    """Weights of a difference of means, (1 + n_exchanges, n_u + n_r): as it is, then with models exchanged."""
    weights = np.concatenate([np.full(n_u, 1 / n_u), np.full(n_r, -1 / n_r)])
    return np.stack([weights, *(rng.permutation(weights) for _ in range(_EXCHANGES))])


def _squares(exchanges: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Squared differences of means over their variance, (1 + n_exchanges, n_examples); values (n_models, n_examples)
    of both samples. The variance is that of both together, so one example cannot outweigh the others."""
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


def _shape_features(z: np.ndarray) -> Iterable[np.ndarray]:
    """Whether each standardised value lies below a cut, less what mean and variance say of it: those are matched in
    either sample, and not when models are exchanged."""
    clipped = np.clip(z, -4, 4)
    moments = np.stack([np.ones(z.size), clipped.ravel(), clipped.ravel() ** 2], axis=1)
    inverse = np.linalg.pinv(moments.T @ moments)
    for cut in _CUTS:
        below = (z <= cut).astype(float)
        yield below - (moments @ (inverse @ (moments.T @ below.ravel()))).reshape(z.shape)


def _kinds(unlearned: np.ndarray, retrained: np.ndarray) -> tuple[int, int] | None:
    """Sizes of two kinds of unlearned models along their first principal component, of which retrained ones know less.

    Ranks among both samples, as normal scores: no single confidence makes a kind.
    """
    n_u, n = len(unlearned), len(unlearned) + len(retrained)
    scores = norm.ppf((rankdata(np.concatenate([unlearned, retrained]), axis=0) - 0.5) / n)
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
