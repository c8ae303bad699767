"""Pools of confidences from known distributions: to check intervals, and to see what a number of models can tell."""

from collections.abc import Callable

import numpy as np

Noise = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def gaussian(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return rng.normal(size=size)


def heavy_tailed(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return rng.standard_t(2.5, size=size)


def simulated_pools(
    n_models: int,
    n_examples: int,
    rng: np.random.Generator,
    *,
    shift: float = 0.0,
    shift_sd: float = 0.0,
    spread: float = 1.0,
    spread_sd: float = 0.0,
    common: float = 0.0,
    noise: Noise = gaussian,
) -> tuple[np.ndarray, np.ndarray]:
    """Unlearned and retrained confidences, (n_models, n_examples) each, of freshly drawn examples.

    Every example has its own mean and scale. Unlearned models are off by shift +- shift_sd (over examples, in
    retrained scales) and spread times as wide (log sd over examples: spread_sd). common: the share of a model's
    variance that pulls all its examples the same way.
    """
    mean = rng.normal(3.0, 2.0, n_examples)
    scale = np.exp(0.3 * rng.normal(size=n_examples))
    off = rng.normal(shift, shift_sd, n_examples)
    wide = spread * np.exp(spread_sd * rng.normal(size=n_examples))

    def residuals():
        together, apart = rng.normal(size=(n_models, 1)), noise(rng, (n_models, n_examples))
        return np.sqrt(common) * together + np.sqrt(1 - common) * apart

    return mean + scale * (off + wide * residuals()), mean + scale * residuals()
