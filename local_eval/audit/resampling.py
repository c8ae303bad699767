"""Resampling of models: how far points, and their mean F, move when other models had been drawn.

Drawing models with replacement repeats values, and a supremum over windows feeds on repeated values: epsilon
rises and F falls. So parts of the models are drawn without replacement. For a statistic whose variance is v / N,
the variance between parts of m of N models, given the models, is v * (1/m - 1/N), which m / (N - m) turns into v / N
(Politis, Romano and Wolf 1999, Subsampling). Three quarters are kept: F changes with the number of models, and
more so its sensitivity, so halves would already speak of another score; with much more kept, chance outweighs the
correction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from kit.errors import InputError
from local_eval.metric import MetricSpec, checked_samples, grid_epsilon, points_of
from local_eval.metric.chunks import over_chunks
from local_eval.metric.score import Attack


@dataclass(frozen=True)
class Resamples:
    """Points with all models, and with random parts of them.

    points (n_examples,); part_points (n_resamples, n_examples); the models of each part: unlearned_rows and
    retrained_rows, (n_resamples, n_kept). scale: variance between parts, times this, is variance between pools. groups
    (n_examples,): the subject of each example, where several may share one; None takes examples as independent.
    """

    points: np.ndarray
    part_points: np.ndarray
    unlearned_rows: np.ndarray
    retrained_rows: np.ndarray
    scale: float = 3.0
    groups: np.ndarray | None = None

    @property
    def n_independent(self) -> int:
        """Subjects where they are known, else examples."""
        return len(self.points) if self.groups is None else len(np.unique(self.groups))

    @property
    def n_parts(self) -> int:
        """What the error was estimated from: as many parts of the models, or as few subjects."""
        return max(2, min(len(self.part_points), self.n_independent))

    @property
    def quality(self) -> float:
        """F, the mean of the points."""
        return float(self.points.mean())

    @property
    def quality_variance(self) -> float:
        """Variance of F over models and examples."""
        return variance_of_mean(self.points, self.part_points, self.scale, self.groups)


def resample(
    unlearned,
    retrained,
    spec: MetricSpec | None = None,
    attack: Attack = grid_epsilon,
    *,
    n_resamples: int = 40,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Resamples:
    """Points of two samples (n_models, n_examples), and of n_resamples parts of their models.

    The same seed draws the same parts, so that methods can be compared on equal terms. Parts are scored with the bins
    of the whole. groups (n_examples,): the subjects, see `Resamples`. Takes n_resamples times the attack on three
    quarters of the models. Raises InputError below four models or two examples.
    """
    unlearned, retrained = checked_samples(unlearned, retrained)
    n_models = min(len(unlearned), len(retrained))
    score = partial(points_of, n_models=n_models, spec=spec or MetricSpec(), attack=attack)
    return resampled(score, unlearned, retrained, n_resamples=n_resamples, seed=seed, groups=groups)


def resampled(
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    unlearned,
    retrained,
    *,
    n_resamples: int = 40,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Resamples:
    """As `resample`, of what `score(unlearned, retrained)` says of each example (n_examples,) in place of points."""
    unlearned, retrained = checked_samples(unlearned, retrained)
    n_models = min(len(unlearned), len(retrained))
    if n_models < 4 or unlearned.shape[1] < 2:
        raise InputError(f"{n_models} models, {unlearned.shape[1]} examples: an interval needs at least 4 and 2")
    if n_resamples < 2:
        raise InputError(f"n_resamples is {n_resamples}: at least 2 are needed")

    u_rows, r_rows = (
        _parts(len(sample), n_resamples, np.random.default_rng([seed, i]))
        for i, sample in enumerate((unlearned, retrained))
    )

    def scores(parts):
        return np.stack([score(unlearned[u], retrained[r]) for u, r in zip(u_rows[parts], r_rows[parts], strict=True)])

    part_points = over_chunks(scores, n_resamples, 1)
    scale = max(
        rows.shape[1] / (len(sample) - rows.shape[1]) for rows, sample in ((u_rows, unlearned), (r_rows, retrained))
    )
    return Resamples(score(unlearned, retrained), part_points, u_rows, r_rows, scale, groups)


def _parts(n_models: int, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    n_kept = n_models - n_models // 4
    return np.stack([rng.permutation(n_models)[:n_kept] for _ in range(n_resamples)])


def typical(values: np.ndarray) -> np.ndarray:
    """Which values (n_examples,) lie within eight standard deviations of the median: an example that is constant in a
    pool, or far beyond all others, shall not decide on the mean and the variance of all. The standard deviation is that
    of a Gaussian with their median absolute deviation."""
    away = np.abs(values - np.median(values))
    reach = 8 * 1.4826 * np.median(away)
    return (away <= reach) | (reach == 0)


def variance_of_mean(
    values: np.ndarray, part_values: np.ndarray, scale: float, groups: np.ndarray | None = None
) -> float:
    """Variance of the mean over examples (n_examples,), when both models and examples had been other ones.

    Examples whose values moved apart would be a plain sample: variance / n_examples, which holds what each example
    owes to its models. What that leaves out is the models' common pull on all examples: the covariance between
    examples, measured on the parts (n_resamples, n_examples) as the variance of their mean less the share that
    the examples' own variances explain. groups (n_examples,): subjects, of whom other ones might have been drawn with
    all their examples; then each subject's sum takes the place of an example.
    """
    n_examples = len(values)
    if groups is not None:
        of_group = np.unique(groups, return_inverse=True)[1].ravel()
        member = np.eye(of_group.max() + 1)[of_group]
        if member.shape[1] < 2:
            raise InputError("all examples are of one subject: no interval over subjects")
        # A ratio of sums: subjects with more examples weigh more, their number is chance too.
        values = (values - values.mean()) @ member * (member.shape[1] / n_examples)
        part_values = part_values @ member * (member.shape[1] / n_examples)
        n_examples = member.shape[1]
    own = values.var(ddof=1) / n_examples
    of_mean = part_values.mean(axis=1).var(ddof=1)
    explained = part_values.var(axis=0, ddof=1).sum() / n_examples**2
    return float(own + scale * max(0.0, of_mean - explained))
