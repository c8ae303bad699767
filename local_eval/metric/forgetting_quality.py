"""Epsilons -> points -> forgetting quality F."""

import numpy as np

from kit.errors import InputError

from .checks import as_floats
from .spec import MetricSpec


def points(epsilon, n_models: int, spec: MetricSpec | None = None) -> np.ndarray:
    """H(s) = 2 / 2^n, n the index from 1 of the bin that epsilon falls in; 0 beyond the last bin.

    epsilon (n_examples,); n_models, the size of each sample (of the smaller, if they differ), sets the number of
    bins. Raises InputError for fewer than 2 models and for epsilons that are NaN or negative.
    """
    spec = spec or MetricSpec()
    epsilon = as_floats(epsilon, "epsilons")
    if n_models < 2:
        raise InputError(f"n_models is {n_models}: at least 2 are needed")
    if not (epsilon >= 0).all():
        raise InputError("some epsilons are NaN or negative: compute them with an attack of this package")
    ends = spec.bin_ends(n_models)
    values = np.append(0.5 ** np.arange(len(ends)), 0.0)
    return values[np.searchsorted(ends, epsilon, "right")]


def forgetting_quality(epsilon, n_models: int, spec: MetricSpec | None = None) -> float:
    """F, the mean of H(s) over the forget set: 1 at best, about 0.19 for a perfect unlearner."""
    return float(points(epsilon, n_models, spec).mean())
