"""Why an epsilon is large: the unlearned mean is off, the spread between runs is wrong, or neither."""

from dataclasses import dataclass

import numpy as np

from local_eval.metric import MetricSpec, checked_samples, grid_epsilon, points
from local_eval.metric.score import Attack

from .findings import Findings, find
from .null import Null

_FEWEST = 16  # models: below these no all-clear is given
_NEAR = 0.9  # of the null: what differs beyond chance is not worth a word from here on
_FAR = 0.5  # of the null: no all-clear below, whatever the tests found


@dataclass(frozen=True)
class Diagnosis:
    """Each epsilon = from_shift + from_spread + rest, all (n_examples,).

    from_shift, from_spread: what matching the mean, or the spread, takes away (below 0 where it makes things worse);
    rest: what is left with both matched, which is chance, as between two retrained samples, and other shape.
    shift: mean difference, unlearned less retrained, in retrained standard deviations; spread_ratio: standard
    deviation of the unlearned over that of the retrained confidences; where retrained models all give one value, the
    median one of the other examples takes its place. findings: what differs beyond chance;
    share, rest_share: F as a share of the null's, of all examples and of those that are not off; None without a null.
    """

    epsilon: np.ndarray
    from_shift: np.ndarray
    from_spread: np.ndarray
    rest: np.ndarray
    shift: np.ndarray
    spread_ratio: np.ndarray
    n_models: int
    findings: Findings
    share: float | None
    rest_share: float | None


def diagnose(
    unlearned,
    retrained,
    spec: MetricSpec | None = None,
    attack: Attack = grid_epsilon,
    null: Null | None = None,
) -> Diagnosis:
    """Split the epsilon of each example by computing it again with the mean, the spread and both matched.

    unlearned, retrained: confidences (n_models, n_examples). A cause's part is the mean of what it takes away
    when matched first and when matched last (the Shapley value), so the parts add up. Takes four times the attack.
    null: that of this attack at this number of models; no all-clear is given to what stays far below it.
    """
    spec = spec or MetricSpec()
    unlearned, retrained = checked_samples(unlearned, retrained)
    mean_u, mean_r = unlearned.mean(axis=0), retrained.mean(axis=0)
    sd_u, sd_r = unlearned.std(axis=0, ddof=1), retrained.std(axis=0, ddof=1)
    around = unlearned - mean_u
    constant = _constant(sd_u, mean_u)  # copies of one model: nothing to stretch
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
    flat = _constant(sd_r, mean_r)
    unit = np.where(flat, 1.0 if flat.all() else np.median(sd_r[~flat]), sd_r)
    findings = find(unlearned, retrained)
    share = rest_share = None
    if null:
        earned = points(as_is, null.n_models, spec)
        share = float(earned.mean() / null.points.mean())
        others = ~findings.off
        rest_share = float(earned[others].mean() / max(null.points[others].mean(), tiny)) if others.any() else 0.0
    return Diagnosis(
        epsilon=as_is,
        from_shift=from_shift,
        from_spread=from_spread,
        rest=both_matched,
        shift=(mean_u - mean_r) / unit,
        spread_ratio=np.where(constant, 0.0, sd_u) / unit,
        n_models=min(len(unlearned), len(retrained)),
        findings=findings,
        share=share,
        rest_share=rest_share,
    )


def _constant(sd: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Is it one value, but for rounding?"""
    return sd <= 1e-9 * np.maximum(1.0, np.abs(mean))


def _unlike(values: np.ndarray) -> np.ndarray:
    """The retrained residuals turned over and moved half a step, so that no value meets its own copy."""
    ordered = np.sort(-values, axis=0)
    moved = ordered.copy()
    moved[:-1] += np.diff(ordered, axis=0) / 2
    return moved


def sentence(diagnosis: Diagnosis) -> str:
    """What keeps these checkpoints from the null, and what to try next, in one sentence for their author."""
    d, found = diagnosis, diagnosis.findings
    yours = f"your {d.n_models} checkpoints"
    copies = float(np.median(d.spread_ratio)) == 0
    if found.kinds and not copies:
        what, remedy = _about_kinds(found.kinds)
    elif found.off.any() and (not found.rest or _near(d.rest_share)) and found.off.mean() <= 0.5:
        what, remedy = _about_examples(d)
    elif (found.shift or found.spread or copies) and not _near(d.share) and not _of_shape(d):
        return _about_all(d, copies)
    elif found.shape and not _near(d.share):
        what, remedy = _about_shape(found)
    elif d.share is not None and d.share < _FAR:
        what = (
            f"reach {d.share:.0%} of what retraining gets, though neither mean nor spread nor shape differ beyond "
            "what chance gives with so many models"
        )
        remedy = "more models, to see what differs"
    elif d.n_models < _FEWEST:
        what, remedy = f"show no fault, but fewer than {_FEWEST} could hide any", "more models, 64 or better 512"
    else:
        return (
            f"{yours} are near what retraining gives: of a mean epsilon of {d.epsilon.mean():.2f}, "
            f"{d.rest.mean():.2f} would be there with mean and spread matched; try next: nothing here, but accuracy "
            "and time, or more models to see finer"
        )
    return f"{yours} {what}; try next: {remedy}"


def _near(share: float | None) -> bool:
    return share is not None and share >= _NEAR


def _of_shape(d: Diagnosis) -> bool:
    """Another shape makes the spreads of samples vary: where it is the only other fault, the shape is the fault."""
    avoidable = max(d.from_shift.mean(), 0.0) + max(d.from_spread.mean(), 0.0)
    alike = not d.findings.shift and 0.8 < np.median(d.spread_ratio) < 1.25
    return d.findings.shape and (alike or avoidable < 0.25 * d.rest.mean())


def _about_all(d: Diagnosis, copies: bool) -> str:
    """Mean or spread are wrong for all examples together: the one that costs more of those that are beyond chance."""
    shift, spread = (max(float(part.mean()), 0.0) for part in (d.from_shift, d.from_spread))
    of_spread = copies or (d.findings.spread and (spread >= shift or not d.findings.shift))
    what, remedy = _about_spread(d) if of_spread else _about_shift(d)
    part, avoidable = spread if of_spread else shift, shift + spread
    share = f"that makes {part / avoidable:.0%} of the avoidable epsilon; " if part > 0 else ""
    return f"your {d.n_models} checkpoints {what}; {share}try next: {remedy}"


def _about_kinds(kinds: tuple[int, int]) -> tuple[str, str]:
    """The fault, and what to try against it."""
    return (
        f"are of two kinds, {kinds[0]} and {kinds[1]} of them, that lie apart on the same examples, where retrained "
        "models are of one kind"
    ), "look for what differs between the runs (a switch, a seed used twice, a step left out in some): all need one"


def _about_examples(d: Diagnosis) -> tuple[str, str]:
    """The fault, and what to try against it, where it is some examples' alone."""
    off, n = d.findings.off, len(d.shift)
    above, size = float(d.findings.above[off].mean()), float(np.median(np.abs(d.shift[off])))
    if size < 0.5:
        how = f"their confidences spread {np.median(d.spread_ratio[off]):.2f} times as widely (median)"
    elif 0.1 <= above <= 0.9:  # only examples beyond chance vote
        how = f"they are off by {size:.1f} standard deviations (median), some above and some below"
    else:
        mood = "too sure" if above > 0.5 else "not sure enough"
        how = f"the checkpoints are {mood} of them, by {size:.1f} standard deviations (median)"
    return (
        f"do not treat {off.sum()} of {n} examples as retraining does: {how}; the others are near what retraining gives"
    ), "look at these images (the report shows the worst), and at whether each run reaches all of the forget set"


def _about_shape(found: Findings) -> tuple[str, str]:
    """The fault, and what to try against it."""
    if abs(found.skewness) > 0.4 and found.excess > -1:
        shape = f"they are one-sided, with a longer tail {'above' if found.skewness > 0 else 'below'}"
    elif found.excess < -0.5:
        shape = "they come in two humps, or fill a span evenly, where retrained ones crowd in the middle"
    elif found.excess > 0.5:
        shape = "some runs lie far out and most crowd in the middle"
    else:
        shape = "runs fall elsewhere in the same span"
    return (
        "have the mean and the spread of retrained models, but their confidences have another shape: " + shape
    ), "look for a choice that each run makes (which layers, which part of the data), and draw it more finely"


def _about_spread(d: Diagnosis) -> tuple[str, str]:
    """The fault, and what to try against it."""
    ratio = float(np.median(d.spread_ratio))
    if ratio == 0:
        return (
            "vary too little between runs: they all give the same confidences",
            "look for a fixed seed or a step that changes nothing, then give each run chance of its own: noise on the "
            "weights, layers re-initialised, or another sample of the retain set per seed",
        )
    each = d.spread_ratio[d.findings.off] if d.findings.off.any() else d.spread_ratio
    if 0.25 < np.mean(each > 1) < 0.75 and 0.8 < ratio < 1.25:
        return (
            "vary too little between runs on some examples and too much on others",
            "more training on the retain set after the change, which all runs share",
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
    votes = d.shift[d.findings.off] if d.findings.off.any() else np.array([d.shift.mean()])  # chance has no vote
    above = float(np.mean(votes > 0))
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
