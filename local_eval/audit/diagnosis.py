"""Why an epsilon is large: the unlearned mean is off, the spread between runs is wrong, or neither."""

from dataclasses import dataclass

import numpy as np

from local_eval.metric import MetricSpec, checked_samples, grid_epsilon
from local_eval.metric.score import Attack


@dataclass(frozen=True)
class Diagnosis:
    """Each epsilon = from_shift + from_spread + rest, all (n_examples,).

    from_shift, from_spread: what matching the mean, or the spread, takes away (below 0 where it makes things worse);
    rest: what is left with both matched, which is chance, as between two retrained samples, and other shape.
    shift: mean difference, unlearned less retrained, in retrained standard deviations; spread_ratio: standard
    deviation of the unlearned over that of the retrained confidences.
    """

    epsilon: np.ndarray
    from_shift: np.ndarray
    from_spread: np.ndarray
    rest: np.ndarray
    shift: np.ndarray
    spread_ratio: np.ndarray
    n_models: int


def diagnose(unlearned, retrained, spec: MetricSpec | None = None, attack: Attack = grid_epsilon) -> Diagnosis:
    """Split the epsilon of each example by computing it again with the mean, the spread and both matched.

    unlearned, retrained: confidences (n_models, n_examples). A cause's part is the mean of what it takes away
    when matched first and when matched last (the Shapley value), so the parts add up. Takes four times the attack.
    """
    spec = spec or MetricSpec()
    unlearned, retrained = checked_samples(unlearned, retrained)
    mean_u, mean_r = unlearned.mean(axis=0), retrained.mean(axis=0)
    sd_u, sd_r = unlearned.std(axis=0, ddof=1), retrained.std(axis=0, ddof=1)
    around = unlearned - mean_u
    constant = sd_u <= 1e-9 * np.maximum(1.0, np.abs(mean_u))  # copies of one model: nothing to stretch
    matched = around * np.divide(sd_r, sd_u, out=np.ones_like(sd_u), where=~constant)
    if constant.any():
        shape = (retrained - mean_r)[np.arange(len(unlearned)) % len(retrained)]
        matched[:, constant] = _unlike(shape[:, constant])

    as_is, mean_matched, spread_matched, both_matched = (
        attack(sample, retrained, spec).epsilon
        for sample in (unlearned, mean_r + around, mean_u + matched, mean_r + matched)
    )
    from_shift = (as_is - mean_matched + spread_matched - both_matched) / 2
    from_spread = (as_is - spread_matched + mean_matched - both_matched) / 2
    tiny = np.finfo(float).tiny
    return Diagnosis(
        epsilon=as_is,
        from_shift=from_shift,
        from_spread=from_spread,
        rest=both_matched,
        shift=(mean_u - mean_r) / np.maximum(sd_r, tiny),
        spread_ratio=np.where(constant, 0.0, sd_u) / np.maximum(sd_r, tiny),
        n_models=len(unlearned),
    )


def _unlike(values: np.ndarray) -> np.ndarray:
    """The retrained residuals turned over and moved half a step, so that no value meets its own copy."""
    ordered = np.sort(-values, axis=0)
    moved = ordered.copy()
    moved[:-1] += np.diff(ordered, axis=0) / 2
    return moved


def sentence(diagnosis: Diagnosis) -> str:
    """What keeps these checkpoints from the null, and what to try next, in one sentence for their author."""
    d = diagnosis
    shift, spread, rest = (float(part.mean()) for part in (d.from_shift, d.from_spread, d.rest))
    avoidable = max(shift, 0.0) + max(spread, 0.0)
    if avoidable < 0.25 * rest or _as_by_chance(d):
        return (
            f"your {d.n_models} checkpoints are near what retraining gives: of a mean epsilon of "
            f"{d.epsilon.mean():.2f}, {rest:.2f} would be there with mean and spread matched; try next: nothing here, "
            "but accuracy and time, or more models to see finer"
        )
    what, remedy = _about_spread(d) if spread >= shift else _about_shift(d)
    share = max(shift, spread) / avoidable
    return f"your {d.n_models} checkpoints {what}; that makes {share:.0%} of the avoidable epsilon; try next: {remedy}"


def _as_by_chance(d: Diagnosis) -> bool:
    """Means and spreads differ no more than those of two retrained samples of this size do: normal samples of N differ
    by sqrt(2 / N) in the mean and by sqrt(1 / N) in the logarithm of the spread; half of all by 0.67 times that."""
    spread = np.log(np.maximum(d.spread_ratio, np.finfo(float).tiny))
    sizes = ((d.shift, 2 / d.n_models), (spread, 1 / d.n_models))
    return all(np.median(np.abs(values)) < 1.5 * 0.67 * np.sqrt(variance) for values, variance in sizes)


def _about_spread(d: Diagnosis) -> tuple[str, str]:
    """The fault, and what to try against it."""
    ratio = float(np.median(d.spread_ratio))
    if ratio == 0:
        return (
            "vary too little between runs: they all give the same confidences",
            "look for a fixed seed or a step that changes nothing, then give each run chance of its own: noise on the "
            "weights, layers re-initialised, or another sample of the retain set per seed",
        )
    fault = (
        f"vary too {'little' if ratio < 1 else 'much'} between runs: their confidences spread {ratio:.2f} times as "
        "widely as those of retrained models (median over examples)"
    )
    if ratio < 1:
        return fault, "noise on the weights, layers re-initialised, or another sample of the retain set per seed"
    return fault, "weaker noise, fewer layers re-initialised, or more training on the retain set after it"


def _about_shift(d: Diagnosis) -> tuple[str, str]:
    """The fault, and what to try against it."""
    size = float(np.median(np.abs(d.shift)))
    above = float(np.mean(d.shift > 0))
    if 0.25 < above < 0.75:
        return (
            f"are off by {size:.1f} standard deviations, too sure of some examples and not sure enough of others",
            "more training on the retain set after the change, where retrained models get their confidences from: a "
            "stronger or weaker push would move all examples one way",
        )
    if above > 0.5:
        mood, side = "too sure", "above"
        remedy = "forget more: a step on the forget set before the repair, layers re-initialised, or stronger noise"
    else:
        mood, side = "not sure enough", "below"
        remedy = "forget less: a smaller step on the forget set, weaker noise, or more training on the retain set after"
    return (
        f"are {mood} of the forgotten examples: their confidences lie {size:.1f} standard deviations {side} those of "
        "retrained models (median over examples)"
    ), remedy
