"""Half-sampling of models: how far points, and their mean F, move when other models had been drawn.

Drawing models with replacement repeats values, and a supremum over windows feeds on repeated values: epsilon
rises and F falls. So halves are drawn without replacement. For a statistic with variance v / N the spread between
halves of N models, given the models, is v * (2/N - 1/N) = v / N: no rescaling is needed (Politis, Romano and Wolf 1999,
Subsampling, chapter 2).
"""

from dataclasses import dataclass

import numpy as np

from kit.errors import InputError
from local_eval.metric import MetricSpec, checked_samples, grid_epsilon, points
from local_eval.metric.score import Attack


@dataclass(frozen=True)
class Resamples:
    """Points with all models, and with random halves of them.

    points (n_examples,); half_points (n_resamples, n_examples); the models of each half: unlearned_rows and
    retrained_rows, (n_resamples, half the models).
    """

    points: np.ndarray
    half_points: np.ndarray
    unlearned_rows: np.ndarray
    retrained_rows: np.ndarray

    @property
    def quality(self) -> float:
        """F, the mean of the points."""
        return float(self.points.mean())


def resample(
    unlearned,
    retrained,
    spec: MetricSpec | None = None,
    attack: Attack = grid_epsilon,
    *,
    n_resamples: int = 40,
    seed: int = 0,
) -> Resamples:
    """Points of two samples (n_models, n_examples), and of n_resamples halves of their models.

    The same seed draws the same halves, so that methods can be compared on equal terms. Halves are scored
    with the bins of the whole. Takes n_resamples times the attack at half the models. Raises InputError below four
    models or two examples.
    """
    spec = spec or MetricSpec()
    unlearned, retrained = checked_samples(unlearned, retrained)
    n_models = min(len(unlearned), len(retrained))
    if n_models < 4 or unlearned.shape[1] < 2:
        raise InputError(f"{n_models} models, {unlearned.shape[1]} examples: an interval needs at least 4 and 2")
    if n_resamples < 2:
        raise InputError(f"n_resamples is {n_resamples}: at least 2 are needed")

    def score(u, r):
        return points(attack(u, r, spec).epsilon, n_models, spec)

    u_rows, r_rows = (
        _halves(len(sample), n_resamples, np.random.default_rng([seed, i]))
        for i, sample in enumerate((unlearned, retrained))
    )
    half_points = np.stack([score(unlearned[u], retrained[r]) for u, r in zip(u_rows, r_rows, strict=True)])
    return Resamples(score(unlearned, retrained), half_points, u_rows, r_rows)


def _halves(n_models: int, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    return np.stack([rng.permutation(n_models)[: n_models // 2] for _ in range(n_resamples)])


def variance_of_mean(values: np.ndarray, half_values: np.ndarray) -> float:
    """Variance of the mean over examples (n_examples,), when both models and examples had been other ones.

    Examples whose values moved apart would be a plain sample: variance / n_examples, which holds what each example
    owes to its models. What that leaves out is the models' common pull on all examples: the covariance between
    examples, measured on the halves (n_resamples, n_examples) as the variance of their mean less the share that
    the examples' own variances explain.
    """
    n_examples = len(values)
    own = values.var(ddof=1) / n_examples
    of_mean = half_values.mean(axis=1).var(ddof=1)
    explained = half_values.var(axis=0, ddof=1).sum() / n_examples**2
    return float(own + max(0.0, of_mean - explained))
