"""The score at N = 512 from fewer models, and whether those are enough to rank methods at all."""

from dataclasses import dataclass

import numpy as np

from kit.errors import InputError
from local_eval.metric import MetricSpec, checked_samples, grid_epsilon, points_of
from local_eval.metric.score import Attack

from .intervals import Interval, log_interval
from .resampling import Resamples, resample, typical

_MISFIT = 3.0  # times less than measured: from here on the fitted model speaks of other confidences
_WIDEST = 30.0  # times the prediction: an interval that reaches further says nothing


@dataclass(frozen=True)
class Prediction:
    """F expected at n_models from observed_at models; multiply by the accuracy ratios for the score.

    observed: F as measured; fitted: what the fitted model says of F at the observed number of models, which should
    be near it.
    """

    quality: Interval
    n_models: int
    observed: float
    observed_at: int
    fitted: float


def predict_quality(
    unlearned,
    retrained,
    n_models: int = 512,
    spec: MetricSpec | None = None,
    attack: Attack = grid_epsilon,
    *,
    resamples: Resamples | None = None,
    n_simulated: int = 400,
    n_refits: int = 10,
    seed: int = 0,
    level: float = 0.95,
    attainable: Interval | None = None,
) -> Prediction:
    """F at n_models from smaller samples (n_models, n_examples), with its interval.

    A model of the confidences is fitted: each example has a mean and a spread, unlearned models a shift and
    another spread of their own, and all residuals have the shapes seen. Part of the fitted shifts and spreads is
    chance, more so with few models; they are shrunk until only their true variation is left. Samples of both sizes
    are drawn from it, and the change of F between the sizes is applied to the F observed. resamples: those of these
    samples, where the caller has them already. attainable: the null at n_models, where it is known: no prediction lies
    above it, and no interval above its upper end.

    Raises InputError, as `resample` does, where F is 0, and where the fitted model does not give the F observed: a few
    examples alone earn the points then, or the models are of several kinds, and no change between the sizes is known.
    So it does where the interval would span more than a factor of 30 either way.
    """
    spec = spec or MetricSpec()
    unlearned, retrained = checked_samples(unlearned, retrained)
    observed_at = min(len(unlearned), len(retrained))
    if observed_at < 8:
        raise InputError(f"{observed_at} models are too few to fit the confidences: at least 8 are needed")
    resamples = resamples or resample(unlearned, retrained, spec, attack, seed=seed)
    if resamples.quality == 0:
        raise InputError(f"F is 0 at {observed_at} models: nothing can be predicted from it")
    rng = np.random.default_rng(seed)
    floor = 0.5 ** spec.n_bins(n_models) / n_simulated

    def step_of(u, r) -> tuple[float, float]:
        """log of F's change from observed_at to n_models, and F at observed_at, in the model fitted to u and r."""
        draw = fit(u, r, rng)
        sizes = (observed_at, n_models)
        now, then = (points_of(*draw(n, n_simulated), n, spec, attack).mean() for n in sizes)
        return float(np.log(max(then, floor) / max(now, floor))), float(now)

    # The doubt below counts chance in this step one and a half times: four draws halve it.
    step, fitted = np.mean([step_of(unlearned, retrained) for _ in range(4)], axis=0)
    if fitted < resamples.quality / _MISFIT:
        raise InputError(
            f"the model fitted to the confidences gives an F of {fitted:.2g} at {observed_at} models, where "
            f"{resamples.quality:.2g} was measured: nothing can be predicted from it"
        )
    log_quality, of_halves = np.empty((2, n_refits))
    for i in range(n_refits):
        u, r = (x[rng.permutation(len(x))[: len(x) // 2]] for x in (unlearned, retrained))
        log_quality[i] = np.log(max(points_of(u, r, observed_at, spec, attack).mean(), floor))
        of_halves[i] = step_of(u, r)[0]
    # What the fit loses with half the models it has, at most, lost itself: half of that is made good, and
    # as much counts as error.
    doubt = (step - of_halves.mean()) / 2
    quality = resamples.quality * np.exp(step + doubt)
    # Pools off by chance have both a lower F and a steeper step: errors that go together count together.
    together = np.var(log_quality + of_halves, ddof=1) - np.var(log_quality, ddof=1)
    relative = resamples.quality_variance / resamples.quality**2
    relative += max(together, np.var(of_halves, ddof=1)) + doubt**2
    interval = log_interval(float(quality), float(quality * np.sqrt(relative)), level)
    if interval.high > _WIDEST * interval.value:
        raise InputError(
            f"the prediction from {observed_at} models is uncertain by a factor above {_WIDEST:.0f} either way: it "
            "says nothing; make more models"
        )
    most, highest = (attainable.value, attainable.high) if attainable else (1.0, 1.0)
    quality, low, high = np.minimum((interval.value, interval.low, interval.high), (most, most, min(highest, 1.0)))
    interval = Interval(float(quality), float(low), float(high), interval.standard_error, level)
    return Prediction(interval, n_models, resamples.quality, observed_at, float(fitted))


def fit(unlearned: np.ndarray, retrained: np.ndarray, rng: np.random.Generator):
    """A function (n_models, n_examples) -> two samples, drawn from the fitted model of these two."""
    n_u, n_r = len(unlearned), len(retrained)
    mean_u, mean_r = unlearned.mean(axis=0), retrained.mean(axis=0)
    sd_u, sd_r = (np.maximum(x.std(axis=0, ddof=1), 1e-12) for x in (unlearned, retrained))
    z_u, z_r = (unlearned - mean_u) / sd_u, (retrained - mean_r) / sd_r
    shift = (mean_u - mean_r) / sd_r
    ratio = np.log(sd_u / sd_r)
    true = _true_variances(unlearned, retrained, rng)
    shift, ratio = (shrunk(values, variance) for values, variance in zip((shift, ratio), true, strict=True))
    order = rng.permutation(len(shift))
    stretch_u, stretch_r = np.sqrt(n_u / (n_u - 1)), np.sqrt(n_r / (n_r - 1))

    def draw(n_models: int, n_examples: int) -> tuple[np.ndarray, np.ndarray]:
        s = np.resize(order, n_examples)
        size = (n_models, n_examples)
        u, r = smoothed(z_u * stretch_u, size, rng), smoothed(z_r * stretch_r, size, rng)
        return mean_r[s] + sd_r[s] * (shift[s] + np.exp(ratio[s]) * u), mean_r[s] + sd_r[s] * r

    return draw


def _true_variances(unlearned: np.ndarray, retrained: np.ndarray, rng: np.random.Generator, n_splits: int = 10):
    """Variance over examples of shift and log spread ratio without the part that is chance: the covariance of
    what two disjoint halves of the models say."""
    found = []
    for _ in range(n_splits):
        (u_1, u_2), (r_1, r_2) = (np.array_split(rng.permutation(x), 2) for x in (unlearned, retrained))
        pairs = zip(_shift_and_ratio(u_1, r_1), _shift_and_ratio(u_2, r_2), strict=True)
        found.append([np.cov(*np.stack(pair)[:, np.all([*map(typical, pair)], axis=0)])[0, 1] for pair in pairs])
    return np.mean(found, axis=0)


def _shift_and_ratio(unlearned: np.ndarray, retrained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sd_u, sd_r = (np.maximum(x.std(axis=0, ddof=1), 1e-12) for x in (unlearned, retrained))
    return (unlearned.mean(axis=0) - retrained.mean(axis=0)) / sd_r, np.log(sd_u / sd_r)


def shrunk(values: np.ndarray, true_variance: float) -> np.ndarray:
    """Drawn to their mean until their variance is the true one."""
    some = values[typical(values)]
    variance = some.var(ddof=1)
    scale = np.sqrt(np.clip(true_variance / variance, 0, 1)) if variance > 0 else 0.0
    return some.mean() + scale * (values - some.mean())


def smoothed(residuals: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Residuals of all examples and models drawn anew, with a little noise so that no value comes twice."""
    width = 0.05
    drawn = rng.choice(residuals.ravel(), size=size)
    return (drawn + width * rng.normal(size=size)) / np.sqrt(1 + width**2)


# Grid form, 100 examples, eight simulated methods: the share of pairs in the order of N = 512, and of runs with the
# perfect method first. From benchmarks/results/ranking.json.
RANKING = {
    3: (0.709, 0.25),
    4: (0.727, 0.3),
    8: (0.814, 0.4),
    16: (0.871, 0.75),
    32: (0.898, 0.95),
    64: (0.911, 0.95),
    128: (0.929, 1.0),
    256: (0.966, 1.0),
}
RANKABLE = 32
AS_AT_512 = 256


def ranking_warning(n_models: int) -> str | None:
    """What this number of models cannot rank, and why, as one sentence; None where it ranks as 512 models do."""
    if n_models >= AS_AT_512:
        return None
    size = max((n for n in RANKING if n <= n_models), default=min(RANKING))
    pairs, first = RANKING[size]
    measured = f"in simulations at N = {size} {pairs:.0%} of pairs of methods stood in the order of N = 512"
    if n_models < RANKABLE:
        return (
            f"{n_models} models are too few to rank methods: {measured}, and a perfect method came first in "
            f"{first:.0%} of runs: take {RANKABLE} models at the very least"
        )
    return (
        f"{n_models} models rank methods roughly: {measured}; few models see a shifted mean before a wrong spread, "
        f"which then costs too little: compare predictions for N = 512, or take {AS_AT_512} models"
    )
