"""The null: what a perfect unlearner would get, from the retrained pool alone; the score as a share of it."""

from dataclasses import dataclass

import numpy as np

from kit.errors import InputError
from local_eval.metric import MetricSpec, checked_samples, grid_epsilon, points
from local_eval.metric.chunks import over_chunks
from local_eval.metric.score import Attack

from .intervals import Accuracies, Interval, log_interval, ratio_variance, zero_interval
from .resampling import Resamples, variance_of_mean


@dataclass(frozen=True)
class Null:
    """F of retrained against retrained models, for n_models in each sample.

    quality: the estimate with its interval; at_half: mean F of the pool's halves against each other; n_effect: what
    was multiplied to get from half the pool to n_models; points (n_examples,): mean points of each example, n_effect
    included; epsilon (n_examples,): what chance gives each example at n_models, of one cut of the pool, brought from
    half the pool to n_models by the quantiles of the drawn samples; mean_epsilon: their mean over all cuts. Each form
    of the attacks has its own null: compare scores with the null of the same form only.
    """

    quality: Interval
    at_half: float
    n_effect: float
    n_effect_error: float
    points: np.ndarray
    n_models: int
    epsilon: np.ndarray
    mean_epsilon: float


def null_quality(
    retrained,
    n_models: int | None = None,
    spec: MetricSpec | None = None,
    attack: Attack = grid_epsilon,
    *,
    n_halvings: int = 20,
    n_simulated: int = 400,
    seed: int = 0,
    level: float = 0.95,
) -> Null:
    """F that retraining itself would get at n_models against n_models (default: as many as the pool has).

    retrained (n_retrained, n_examples). The pool is cut into disjoint halves n_halvings times. Those are the null at
    half the pool; Gaussian samples with the examples' means and spreads, drawn at both sizes, say how F changes from
    there to n_models (bins are those of n_models throughout). For the exact form that step holds for every continuous
    distribution, as its null depends on ranks alone. n_simulated: examples drawn for it. Raises InputError below
    four models or two examples.
    """
    spec = spec or MetricSpec()
    retrained, _ = checked_samples(retrained, retrained)
    n_retrained, n_examples = retrained.shape
    n_models = n_models or n_retrained
    if n_retrained < 4 or n_examples < 2:
        raise InputError(f"{n_retrained} retrained models, {n_examples} examples: a null needs at least 4 and 2")
    rng = np.random.default_rng(seed)
    half = n_retrained // 2

    orders = [rng.permutation(n_retrained) for _ in range(n_halvings)]

    def between_halves(some):
        pairs = ((retrained[rows[:half]], retrained[rows[half : 2 * half]]) for rows in orders[some])
        return np.stack([attack(*pair, spec).epsilon for pair in pairs])

    epsilon_cuts = over_chunks(between_halves, n_halvings, 1)
    cuts = points(epsilon_cuts, n_models, spec)

    chosen = rng.integers(n_examples, size=n_simulated)
    mean, spread = retrained.mean(axis=0)[chosen], retrained.std(axis=0, ddof=1)[chosen]

    def simulated(n):
        return attack(*(mean + spread * rng.normal(size=(2, n, n_simulated))), spec).epsilon

    epsilon_at_half, epsilon_at_n = simulated(half), simulated(n_models)
    at_half, at_n = (points(epsilon, n_models, spec) for epsilon in (epsilon_at_half, epsilon_at_n))
    if at_half.sum() == 0 or at_n.sum() == 0 or cuts.sum() == 0:
        raise InputError("no example of the null got a point: there are too few models to say what is attainable")
    n_effect = float(at_n.mean() / at_half.mean())
    relative_error = np.sqrt(sum(x.var(ddof=1) / len(x) / x.mean() ** 2 for x in (at_half, at_n)))

    expected = cuts.mean(axis=0) * n_effect
    quality = float(expected.mean())
    variance = expected.var(ddof=1) / n_examples + (quality * relative_error) ** 2
    brought = _brought(epsilon_cuts, epsilon_at_half, epsilon_at_n)
    return Null(
        quality=log_interval(quality, np.sqrt(variance), level, highest=1.0),
        at_half=float(cuts.mean()),
        n_effect=n_effect,
        n_effect_error=float(relative_error),
        points=expected,
        n_models=n_models,
        epsilon=brought[0],
        mean_epsilon=float(brought.mean()),
    )


def _brought(epsilon: np.ndarray, drawn_at_half: np.ndarray, drawn_at_n: np.ndarray) -> np.ndarray:
    """Epsilons of halves (n_halvings, n_examples) as they would be at n_models: each at its own quantile of the drawn
    ones. Equal epsilons have many quantiles; they are spread evenly over them."""
    drawn = np.sort(drawn_at_half)
    below, up_to = (drawn.searchsorted(epsilon, side) for side in ("left", "right"))
    within = np.random.default_rng(0).random(epsilon.shape)
    quantile = (below + within * np.maximum(up_to - below, 1)) / (len(drawn) + 1)
    return np.quantile(drawn_at_n, np.clip(quantile, 0, 1))


def share_of_attainable(
    resamples: Resamples, null: Null, accuracies: Accuracies | None = None, level: float = 0.95
) -> Interval:
    """The score (without accuracies, F) as a share of the null, which a perfect unlearner reaches: about 1 for it.

    Examples hard for one are hard for the other: their errors are counted together.
    """
    if resamples.points.shape != null.points.shape:
        raise InputError("the score and its null come from different forget sets")
    ratio = 1.0 if accuracies is None else accuracies.ratio
    share = ratio * resamples.quality / null.quality.value
    if share == 0:
        return zero_interval(resamples, level, 1 / null.quality.value)
    pull = resamples.points / resamples.quality - null.points / null.quality.value
    relative = variance_of_mean(pull, resamples.part_points / resamples.quality, resamples.scale, resamples.groups)
    relative += null.n_effect_error**2
    if accuracies is not None:
        relative += ratio_variance(accuracies)
    return log_interval(share, share * np.sqrt(relative), level, n_parts=resamples.n_parts)
