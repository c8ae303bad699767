"""The forgetting quality that each example's shift and spread would give at N = 512, from a table of simulations.

With few models the score itself cannot be compared with one of 512: an example half a standard deviation off passes at
N = 8 and fails at 512. Its shift and its spread can be estimated from few models all the same.
"""

from functools import cache

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from kit.competition import N_CHECKPOINTS
from local_eval.metric import MetricSpec, grid_epsilon, points

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


def expected_quality(shift: np.ndarray, spread_ratio: np.ndarray) -> float:
    """Mean over examples; shift in standard deviations of the retrained confidences, both (n_examples,)."""
    look_up = RegularGridInterpolator((_SHIFTS, np.log(_RATIOS)), table())
    shift = np.clip(np.abs(shift), _SHIFTS[0], _SHIFTS[-1])
    ratio = np.clip(spread_ratio, _RATIOS[0], _RATIOS[-1])
    return float(look_up(np.column_stack([shift, np.log(ratio)])).mean())
