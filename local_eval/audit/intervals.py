"""Intervals for F, the accuracy ratios and the final score; how sure one method is above another.

Each holds for other models and other examples from where these came from: the truth it covers is the expected value at
this number of models. Examples are taken as independent, or subjects where these are known; below 30 of either the
intervals cover less than they say. Coverage is measured by benchmarks/bench_intervals.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from kit.errors import InputError
from local_eval.metric.checks import as_floats, check_finite

from .resampling import Resamples, variance_of_mean


def decimals(value: float | None, digits: int = 4) -> str:
    """With so many decimals, "-" for none; what is above 0 and would read as 0 is told to be below the least of them.

    >>> decimals(0.01234), decimals(0.00004), decimals(0.0)
    ('0.0123', '<0.0001', '0.0000')
    """
    if value is None:
        return "-"
    text = f"{value:.{digits}f}"
    return f"<{10**-digits:.{digits}f}" if value > 0 and float(text) == 0 else text


@dataclass(frozen=True)
class Interval:
    """A value, its standard error, and the interval that covers the truth in `level` of all repetitions."""

    value: float
    low: float
    high: float
    standard_error: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{decimals(self.value)} [{decimals(self.low)}, {decimals(self.high)}]"


@dataclass(frozen=True)
class Accuracies:
    """Retain and test accuracies of the unlearned (u) and the retrained (r) models.

    Each is (n_models,), or (n_models, n_examples) of 0 and 1, right or wrong: then the interval also counts that
    other retain and test examples might have been taken.
    """

    retain_u: np.ndarray
    retain_r: np.ndarray
    test_u: np.ndarray
    test_r: np.ndarray

    def __post_init__(self):
        for name in ("retain_u", "retain_r", "test_u", "test_r"):
            values = as_floats(getattr(self, name), name)
            if values.ndim not in (1, 2) or len(values) < 2:
                raise InputError(f"{name} has shape {values.shape}: expected (n_models,) or (n_models, n_examples)")
            check_finite(values[:, None] if values.ndim == 1 else values, name)
            object.__setattr__(self, name, values)
        if self.retain_r.mean() <= 0 or self.test_r.mean() <= 0:
            raise InputError("the retrained models' accuracy is 0: no ratio to them exists")

    @property
    def ratio(self) -> float:
        """(RA_U / RA_R) * (TA_U / TA_R)."""
        retain = self.retain_u.mean() / self.retain_r.mean()
        return float(retain * self.test_u.mean() / self.test_r.mean())


def log_interval(
    value: float,
    standard_error: float,
    level: float = 0.95,
    highest: float = np.inf,
    n_parts: int | None = None,
) -> Interval:
    """Normal on the logarithm: F lies above 0 and its error is in proportion to it. n_parts: parts of the models that
    the error was estimated from; few of them may have said too little, so Student's t takes the normal's place."""
    if not value > 0:
        raise InputError(f"the value is {value}: an interval on the logarithm needs one above 0")
    tail = 0.5 + level / 2
    quantile = ndtri(tail) if n_parts is None else stdtrit(n_parts - 1, tail)
    factor = np.exp(quantile * standard_error / value)
    return Interval(value, value / factor, min(value * factor, highest), standard_error, level)


def quality_interval(resamples: Resamples, level: float = 0.95) -> Interval:
    """F with its interval over models and examples."""
    if resamples.quality == 0:
        return zero_interval(resamples, level)
    error = np.sqrt(resamples.quality_variance)
    return log_interval(resamples.quality, error, level, highest=1.0, n_parts=resamples.n_parts)


def zero_interval(resamples: Resamples, level: float = 0.95, times: float = 1.0) -> Interval:
    """No example has a point: the share of those that would is below this, and no points are above 1."""
    return Interval(0.0, 0.0, times * (1 - (1 - level) ** (1 / resamples.n_independent)), 0.0, level)


def ratio_interval(of_u, of_r, level: float = 0.95) -> Interval:
    """Ratio of mean accuracies, unlearned to retrained; each as in `Accuracies`."""
    accuracies = Accuracies(of_u, of_r, of_u, of_r)  # the ratio once as retain, once as test ratio
    u, r = accuracies.retain_u, accuracies.retain_r
    value = float(u.mean() / r.mean())
    if value == 0:
        return Interval(0.0, 0.0, 0.0, 0.0, level)
    variance = _model_variance(u) + _model_variance(r) + _variance_of_pull(_pull(u, r))
    return log_interval(value, value * np.sqrt(variance), level)


def score_interval(resamples: Resamples, accuracies: Accuracies, level: float = 0.95) -> Interval:
    """The final score F * (RA_U / RA_R) * (TA_U / TA_R) with its interval over models and examples."""
    quality, ratio = resamples.quality, accuracies.ratio
    if quality * ratio == 0:
        return zero_interval(resamples, level, ratio)
    covariance = np.cov(resamples.part_points.mean(axis=1), part_ratios(resamples, accuracies))[0, 1] * resamples.scale
    variance = ratio**2 * resamples.quality_variance
    variance += (quality * ratio) ** 2 * ratio_variance(accuracies)
    total = variance + 2 * quality * ratio * covariance
    error = np.sqrt(max(total, variance / 2))
    return log_interval(quality * ratio, error, level, highest=ratio, n_parts=resamples.n_parts)


def times_ratio(quality: Interval, accuracies: Accuracies) -> Interval:
    """The score of an F above 0 that was not measured with these models: its error and the accuracies' are
    independent."""
    ratio, own = accuracies.ratio, ratio_variance(accuracies)
    if ratio == 0:
        return Interval(0.0, 0.0, 0.0, 0.0, quality.level)
    wider = ndtri(0.5 + quality.level / 2) * np.sqrt(own)
    low, high = (
        ratio * quality.value * np.exp(sign * np.hypot(np.log(max(end, 1e-300) / quality.value), wider))
        for sign, end in ((-1, quality.low), (1, quality.high))
    )
    error = ratio * np.hypot(quality.standard_error, quality.value * np.sqrt(own))
    return Interval(ratio * quality.value, float(low), float(high), float(error), quality.level)


def probability_above(
    first: Resamples,
    second: Resamples,
    first_accuracies: Accuracies | None = None,
    second_accuracies: Accuracies | None = None,
) -> float:
    """How sure the first method's expected score is above the second's; without accuracies, its F.

    The two are paired: same retrained models, same examples, same parts (resample with one seed), of accuracies too.
    Parts of the unlearned models are paired too, which counts if run i of both methods shares its seed. The difference
    is taken as normal.
    """
    if first.points.shape != second.points.shape or not np.array_equal(first.retrained_rows, second.retrained_rows):
        raise InputError("the two methods were resampled differently: use one seed, one retrained pool, one forget set")
    ratios = [1.0 if a is None else a.ratio for a in (first_accuracies, second_accuracies)]
    difference = ratios[0] * first.points - ratios[1] * second.points
    parts = ratios[0] * first.part_points - ratios[1] * second.part_points
    variance = variance_of_mean(difference, parts, first.scale, first.groups)
    variance += _variance_of_ratios(
        [
            (accuracies, ratio * resamples.quality * sign)
            for accuracies, ratio, resamples, sign in zip(
                (first_accuracies, second_accuracies), ratios, (first, second), (1, -1), strict=True
            )
            if accuracies is not None and ratio
        ]
    )
    mean = difference.mean()
    if variance == 0:
        return 0.5 if mean == 0 else float(mean > 0)
    return float(ndtr(mean / np.sqrt(variance)))


def ratio_variance(accuracies: Accuracies) -> float:
    """Relative variance of the product of both ratios."""
    return _variance_of_ratios([(accuracies, 1.0)])


def _variance_of_ratios(weighted: Sequence[tuple[Accuracies, float]]) -> float:
    """Variance of the sum of methods' log ratios, each times its weight, against the same retrained models: the models'
    part with retain and test together, as a model good on one is good on the other, and the images' part of each."""
    if not weighted:
        return 0.0
    a, total = weighted[0][0], sum(weight for _, weight in weighted)
    found = total**2 * _product_variance(a.retain_r, a.test_r)
    found += sum(weight**2 * _product_variance(b.retain_u, b.test_u) for b, weight in weighted)
    for of_u, of_r in (("retain_u", "retain_r"), ("test_u", "test_r")):
        pulls = [weight * _pull(getattr(b, of_u), getattr(b, of_r)) for b, weight in weighted]
        found += _variance_of_pull(sum(pulls))
    return float(found)


def _product_variance(retain: np.ndarray, test: np.ndarray) -> float:
    """Relative variance of the product of two mean accuracies of the same models."""
    return (_of_models(retain) / retain.mean() + _of_models(test) / test.mean()).var(ddof=1) / len(retain)


def part_ratios(resamples: Resamples, accuracies: Accuracies) -> np.ndarray:
    """(RA_U / RA_R) * (TA_U / TA_R) of each part's models, (n_resamples,)."""

    def means(values, rows):
        return _of_models(values)[rows].mean(axis=1)

    a, u, r = accuracies, resamples.unlearned_rows, resamples.retrained_rows
    return means(a.retain_u, u) / means(a.retain_r, r) * means(a.test_u, u) / means(a.test_r, r)


def _of_models(values: np.ndarray) -> np.ndarray:
    return values if values.ndim == 1 else values.mean(axis=1)


def _model_variance(values: np.ndarray) -> float:
    each = _of_models(values)
    return each.var(ddof=1) / len(each) / each.mean() ** 2


def _pull(u: np.ndarray, r: np.ndarray) -> np.ndarray:
    """How much each example, which both share, moves log(mean(u) / mean(r)), (n_examples,); 0 where none are known."""
    if u.ndim == 1 or r.ndim == 1:
        return np.zeros(1)
    if u.shape[1] != r.shape[1]:
        raise InputError(f"accuracies of {u.shape[1]} and of {r.shape[1]} examples: both need the same examples")
    return u.mean(axis=0) / u.mean() - r.mean(axis=0) / r.mean()


def _variance_of_pull(pull: np.ndarray) -> float:
    return pull.var(ddof=1) / len(pull) if len(pull) > 1 else 0.0
