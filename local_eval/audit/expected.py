"""The forgetting quality that each example's shift and spread would give at N = 512, from a table of simulations.

With few models the score itself cannot be compared with one of 512: an example half a standard deviation off passes at
N = 8 and fails at 512. Its shift and its spread can be estimated from few models all the same, once what chance adds to
them is taken away.
"""

from functools import cache

import numpy as np
from scipy.interpolate import RegularGridInterpolator
from scipy.special import polygamma, psi

from local_eval.metric import MetricSpec, checked_samples, grid_epsilon, points
from local_eval.metric.spec import N_CHECKPOINTS

from .resampling import Resamples, resampled, typical

_SHIFTS = np.array([0, 0.1, 0.2, 0.35, 0.5, 0.7, 1, 1.4, 2, 3, 4.5, 6])
_RATIOS = np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1, 1.11, 1.25, 1.54, 2, 3, 5])
_N_SIMULATED = 60


@cache
def table() -> np.ndarray:
    """Mean points at 512 models of Gaussian confidences, (shifts, ratios)."""
    rng, spec = np.random.default_rng(0), MetricSpec()
    found = np.empty((len(_SHIFTS), len(_RATIOS)))
    for i, shift in enumerate(_SHIFTS):
        for j, ratio in enumerate(_RATIOS):
            u, r = rng.normal(size=(2, N_CHECKPOINTS, _N_SIMULATED))
            found[i, j] = points(grid_epsilon(shift + ratio * u, r, spec).epsilon, N_CHECKPOINTS, spec).mean()
    return found


def points_at(shift: np.ndarray, spread_ratio: np.ndarray) -> np.ndarray:
    """Of each example, (n_examples,); shift in standard deviations of the retrained confidences, both (n_examples,)."""
    look_up = RegularGridInterpolator((_SHIFTS, np.log(_RATIOS)), table())
    shift = np.clip(np.abs(shift), _SHIFTS[0], _SHIFTS[-1])
    ratio = np.clip(spread_ratio, _RATIOS[0], _RATIOS[-1])
    return look_up(np.column_stack([shift, np.log(ratio)]))


def expected_at_512(unlearned, retrained) -> float:
    """The forgetting quality: the mean of `expected_points`."""
    return float(expected_points(unlearned, retrained).mean())


def resample_expected(unlearned, retrained, **options) -> Resamples:
    """`expected_points` with all models and with parts of them, for intervals of what is expected at 512; options as
    those of `resample`."""
    return resampled(expected_points, unlearned, retrained, **options)


def expected_points(unlearned, retrained) -> np.ndarray:
    """The same from confidences (n_models, n_examples), two models of each kind at the least.

    Differences of means and of logarithms of standard deviations vary by chance as those of Gaussian samples do: the
    variance over examples is shrunk by that much, and the logarithms' bias is taken away.
    """
    unlearned, retrained = checked_samples(unlearned, retrained)
    n_u, n_r = len(unlearned), len(retrained)
    log_u, log_r = (
        np.log(np.maximum(x.std(axis=0, ddof=1), 1e-12)) - _log_bias(len(x)) for x in (unlearned, retrained)
    )
    log_ratio = _shrunk(log_u - log_r, _log_variance(n_u) + _log_variance(n_r))
    shift = (unlearned.mean(axis=0) - retrained.mean(axis=0)) / np.exp(log_r)
    # A spread estimated from few models makes a shift vary more than by 1 / N: times E[1 / s^2], about.
    factor = np.exp(2 * _log_variance(n_r))
    shift = _shrunk(shift, factor * (np.exp(2 * np.median(log_ratio)) / n_u + 1 / n_r))
    return points_at(shift, np.exp(log_ratio))


def _log_bias(n: int) -> float:
    """Mean of log(s / sigma), s the standard deviation of n Gaussian values."""
    return float(psi((n - 1) / 2) - np.log((n - 1) / 2)) / 2


def _log_variance(n: int) -> float:
    """Variance of log s."""
    return float(polygamma(1, (n - 1) / 2)) / 4


def _shrunk(values: np.ndarray, by_chance: float) -> np.ndarray:
    """Drawn to their mean until the variance that is chance has gone."""
    some = values[typical(values)]
    variance = some.var(ddof=1) if len(values) > 1 else 0.0
    scale = np.sqrt(max(0.0, 1 - by_chance / variance)) if variance > 0 else 0.0
    return some.mean() + scale * (values - some.mean())
