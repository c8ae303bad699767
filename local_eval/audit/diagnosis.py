"""Why an epsilon is large: the unlearned mean is off, the spread between runs is wrong, the shape is another, some
examples are not forgotten, or the checkpoints are of two kinds."""

from dataclasses import dataclass

import numpy as np

from local_eval.audit import differences
from local_eval.metric import MetricSpec, checked_samples, grid_epsilon
from local_eval.metric.score import Attack

FEWEST = 16  # models: below, no difference found says nothing
_NEGLIGIBLE = 0.25  # of what chance makes: as much more epsilon costs a tenth of the score
_OTHER_SHAPE = 10.0  # standard deviations of chance; heavy tails alone reach 6
_FEW, _FAR = 0.35, 1.5  # share of the examples; standard deviations


@dataclass(frozen=True)
class Diagnosis:
    """Each epsilon = from_shift + from_spread + rest, all (n_examples,).

    from_shift, from_spread: what matching the mean, or the spread, takes away (below 0 where it makes things worse);
    rest: what is left with both matched, which is chance, as between two retrained samples, and other shape.
    shift: mean difference, unlearned less retrained, in retrained standard deviations; spread_ratio: standard
    deviation of the unlearned over that of the retrained confidences. by_chance: mean epsilon of two samples of these
    sizes from one distribution. What differs beyond chance, see `differences`: shifted, spread_differs (n_examples,)
    bool; shape, in standard deviations of chance; minority, the share of the rarer of two kinds of checkpoints.
    """

    epsilon: np.ndarray
    from_shift: np.ndarray
    from_spread: np.ndarray
    rest: np.ndarray
    shift: np.ndarray
    spread_ratio: np.ndarray
    by_chance: float
    shifted: np.ndarray
    spread_differs: np.ndarray
    shape: float
    minority: float
    n_models: int


def diagnose(unlearned, retrained, spec: MetricSpec | None = None, attack: Attack = grid_epsilon) -> Diagnosis:
    """Split the epsilon of each example by computing it again with the mean, the spread and both matched.

    unlearned, retrained: confidences (n_models, n_examples). A cause's part is the mean of what it takes away
    when matched first and when matched last (the Shapley value), so the parts add up. Takes five times the attack.
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
    chance = np.random.default_rng(0)
    alike = (mean_r + sd_r * chance.normal(size=(len(x), len(mean_r))) for x in (unlearned, retrained))
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
        by_chance=float(attack(*alike, spec).epsilon.mean()),
        shifted=differences.shifted(unlearned, retrained),
        spread_differs=differences.other_spread(unlearned, retrained),
        shape=differences.shape_difference(unlearned, retrained),
        minority=differences.two_kinds(unlearned, retrained),
        n_models=min(len(unlearned), len(retrained)),
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
    shift, spread = (max(float(part.mean()), 0.0) for part in (d.from_shift, d.from_spread))
    shape = max(float(d.rest.mean()) - d.by_chance, 0.0) if d.shape > _OTHER_SHAPE else 0.0
    avoidable = shift + spread + shape
    if d.minority:
        what, remedy = _about_kinds(d)
        return f"your {d.n_models} checkpoints {what}; try next: {remedy}"
    if few := _about_few_examples(d):
        return f"your {d.n_models} checkpoints {few[0]}; try next: {few[1]}"
    if not (d.shifted.any() or d.spread_differs.any()) or shift + spread < _NEGLIGIBLE * d.by_chance:
        if d.shape <= _OTHER_SHAPE:
            return _all_clear(d)
        what, remedy = _ABOUT_SHAPE  # which costs more the more models there are
        return f"your {d.n_models} checkpoints {what}; try next: {remedy}"
    cause, (what, remedy) = max(
        ((shift, _about_shift(d)), (spread, _about_spread(d)), (shape, _ABOUT_SHAPE)), key=lambda found: found[0]
    )
    share = f"that makes {cause / avoidable:.0%} of the avoidable epsilon"
    return f"your {d.n_models} checkpoints {what}; {share}; try next: {remedy}"


def _all_clear(d: Diagnosis) -> str:
    if d.n_models < FEWEST:
        return (
            f"your {d.n_models} checkpoints do not differ from retraining by more than chance, which with fewer than "
            f"{FEWEST} says little; try next: more models"
        )
    return (
        f"your {d.n_models} checkpoints are near what retraining gives: a mean epsilon of {d.epsilon.mean():.2f}, "
        f"where chance alone makes {d.by_chance:.2f}; try next: nothing here, but accuracy and time, or more models to "
        "see finer"
    )


_ABOUT_SHAPE = (
    "have confidences of another shape than retrained models', with nearly the same mean and spread: two humps, a long "
    "tail to one side, or values that pile up",
    "look at the pictures of single images: runs that end in one of two states, or stop at a bound, are mended by more "
    "training on the retain set, or by a step that pushes every run alike",
)


def _about_kinds(d: Diagnosis) -> tuple[str, str]:
    n_rarer = round(d.minority * d.n_models)
    return (
        f"are of two kinds, {n_rarer} and {d.n_models - n_rarer}, further apart than retrained models ever are: an "
        "attacker tells them by being neither",
        "find what differs between those runs (an order, a mixture of methods, a seed that decides), and make them one "
        "kind, or mix kinds that lie on retraining each",
    )


def _about_few_examples(d: Diagnosis) -> tuple[str, str] | None:
    """Where a minority of the examples is far off and nothing is wrong with the others."""
    n, k = len(d.shifted), int(d.shifted.sum())
    if not 0 < k <= _FEW * n or np.median(np.abs(d.shift[d.shifted])) < _FAR:
        return None
    others = ~d.shifted
    if d.epsilon[others].mean() > d.by_chance * (1 + _NEGLIGIBLE) + 0.5 or d.shape > _OTHER_SHAPE:
        return None
    size, above = float(np.median(np.abs(d.shift[d.shifted]))), float((d.shift[d.shifted] > 0).mean())
    what = "are not forgotten" if above > 0.75 else "are forgotten too much" if above < 0.25 else "stand out"
    side = "above" if above > 0.75 else "below" if above < 0.25 else "above or below"
    return (
        f"are as retrained ones on most examples, but {k} of {n} {what}: their confidences lie {size:.1f} standard "
        f"deviations {side} those of retrained models",
        "look at these images in the report; a step whose size follows each example's own loss reaches them without "
        "touching the others",
    )


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
    counted = d.shift[d.shifted] if d.shifted.any() else d.shift  # the others may lie to either side by chance
    size, above = float(np.median(np.abs(counted))), float(np.mean(counted > 0))
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
        f"retrained models (median over {len(counted)} of {len(d.shift)} examples)"
    ), remedy
