"""How far a method's score can be trusted: intervals, null, share of it, prediction, diagnosis, other measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from kit.errors import InputError
from local_eval.audit import families
from local_eval.audit.diagnosis import Diagnosis, diagnose, sentence
from local_eval.audit.intervals import (
    Accuracies,
    Interval,
    probability_above,
    quality_interval,
    ratio_interval,
    score_interval,
    times_ratio,
)
from local_eval.audit.lower_bounds import LowerBounds, epsilon_lower_bounds
from local_eval.audit.null import Null, null_quality, share_of_attainable
from local_eval.audit.predict import predict_quality
from local_eval.audit.resampling import Resamples, resample
from local_eval.distances import Distance, distances
from local_eval.metric import MetricSpec, grid_epsilon
from local_eval.metric.score import FORMS, Attack
from local_eval.metric.spec import N_CHECKPOINTS
from local_eval.rows import NULL

if TYPE_CHECKING:  # torch is behind it, and arrays are assessed without
    from local_eval.evaluate import Sample, Samples

FEWEST = 8  # models: the null row compares halves, and U-LiRA fits and tests on halves of those
_DELTAS = (1e-5, 1e-3, 1e-2, 0.1)


@dataclass(frozen=True)
class Form:
    """One form of the attacks: F and the score with intervals, beside the null of the same form.

    score: None where no accuracies are known; null, share: None where too few models give any example a point;
    predicted: the score (without accuracies, F) expected at 512 models, None where nothing can be predicted, and why;
    null_at_512: the null that it is compared with.
    """

    quality: Interval
    score: Interval | None
    null: Interval | None
    share: Interval | None
    predicted: Interval | None
    null_at_512: Interval | None = None
    unpredicted: str = ""


@dataclass(frozen=True)
class Assessment:
    """One method. forms: by name; the ratios to retraining, None where no accuracies are known; why epsilon is large;
    what epsilon is at least; unmeasured: the examples (rows of the forget set) whose epsilon is the cap because every
    attack on them was discarded, and those whose two ranges differ too much, both of the grid form."""

    name: str
    n_models: int
    forms: Mapping[str, Form]
    retain_ratio: Interval | None
    test_ratio: Interval | None
    diagnosis: Diagnosis
    sentence: str
    lower_bounds: LowerBounds
    discarded: np.ndarray
    too_tight: np.ndarray
    n_independent: int | None = None


def assess(
    samples: Samples,
    spec: MetricSpec | None = None,
    *,
    attacks: str = "grid",
    n_resamples: int = 40,
    seed: int = 0,
    progress: bool = False,
) -> tuple[list[Assessment], dict[tuple[str, str], float]]:
    """Assess every method and doing nothing; with their pairwise probabilities of scoring above each other.

    Returns the assessments, and {(a, b): probability that a's expected score is above b's}; attacks: the form of the
    scores that these compare, and that the diagnosis is of. Raises InputError below eight models.
    """
    methods = samples.beside
    accuracies = {name: accuracies_of(sample, samples.retrained) for name, sample in methods.items()}
    confidences = {name: sample.confidence for name, sample in methods.items()}
    return assess_confidences(
        confidences,
        samples.retrained.confidence,
        accuracies,
        spec,
        attacks=attacks,
        n_resamples=n_resamples,
        seed=seed,
        progress=progress,
        groups=samples.groups,
    )


def assess_confidences(
    unlearned: Mapping[str, np.ndarray],
    retrained: np.ndarray,
    accuracies: Mapping[str, Accuracies] | None = None,
    spec: MetricSpec | None = None,
    *,
    attacks: str = "grid",
    n_resamples: int = 40,
    seed: int = 0,
    progress: bool = False,
    groups: np.ndarray | None = None,
) -> tuple[list[Assessment], dict[tuple[str, str], float]]:
    """As `assess`, from confidences (n_models, n_examples) alone: name -> unlearned ones, and the retrained ones.

    As many of each are compared as there are of the fewer, so that score, null and prediction are of one number; more
    retrained models only tell the null better. groups (n_examples,): the subject of each example, where several share
    one.
    """
    n_models = min(map(len, (retrained, *unlearned.values())))
    if len(sizes := {len(sample) for sample in unlearned.values()}) > 1:
        raise InputError(f"methods of {min(sizes)} to {max(sizes)} models: compare as many of each")
    if n_models < FEWEST:
        raise InputError(f"{n_models} models of each kind: intervals need at least {FEWEST}")
    spec = spec or MetricSpec()
    accuracies = accuracies or {}
    nulls = {form: nulls_of(retrained, n_models, spec, attack, seed=seed) for form, attack in FORMS.items()}
    retrained, unlearned = retrained[:n_models], {name: sample[:n_models] for name, sample in unlearned.items()}
    assessments, resampled = [], {}
    for name, sample in tqdm(unlearned.items(), desc="assessing", disable=not progress):
        parts = {
            form: resample(sample, retrained, spec, attack, n_resamples=n_resamples, seed=seed, groups=groups)
            for form, attack in FORMS.items()
        }
        resampled[name] = parts[attacks]
        found = _assessment(name, sample, retrained, accuracies.get(name), parts, nulls, spec, seed, n_models, attacks)
        assessments.append(replace(found, n_independent=parts[attacks].n_independent))
    above = {
        (a, b): probability_above(resampled[a], resampled[b], accuracies.get(a), accuracies.get(b))
        for a, b in combinations(unlearned, 2)
    }
    return assessments, above


def _assessment(
    name: str,
    unlearned: np.ndarray,
    retrained: np.ndarray,
    accuracies: Accuracies | None,
    parts: Mapping[str, Resamples],
    nulls: Mapping[str, Mapping[int, Null | None]],
    spec: MetricSpec,
    seed: int,
    n_models: int,
    attacks: str,
) -> Assessment:
    diagnosis = diagnose(unlearned, retrained, spec, FORMS[attacks], null=nulls[attacks][n_models])
    measured = grid_epsilon(unlearned, retrained, spec)
    a = accuracies
    return Assessment(
        name=name,
        n_models=n_models,
        forms={
            form: _form((unlearned, retrained), parts[form], nulls[form], a, spec, attack, seed)
            for form, attack in FORMS.items()
        },
        retain_ratio=a and ratio_interval(a.retain_u, a.retain_r),
        test_ratio=a and ratio_interval(a.test_u, a.test_r),
        diagnosis=diagnosis,
        sentence=sentence(diagnosis),
        lower_bounds=epsilon_lower_bounds(unlearned, retrained, spec, seed=seed),
        discarded=np.flatnonzero(measured.discarded),
        too_tight=np.flatnonzero(measured.too_tight),
    )


def nulls_of(
    retrained: np.ndarray, n_models: int, spec: MetricSpec, attack: Attack, *, seed: int = 0
) -> dict[int, Null | None]:
    """The null at this number of models and at 512, of retrained confidences (n_retrained, n_examples): what the forms
    of all methods share. None where too few models give any example a point."""
    return {n: _null(retrained, n, spec, attack, seed) for n in {n_models, N_CHECKPOINTS}}


def form_of(
    unlearned: Sample,
    retrained: Sample,
    nulls: Mapping[int, Null | None],
    spec: MetricSpec,
    attack: Attack,
    *,
    n_resamples: int = 40,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Form:
    """One form of one method, as `assess` gives it; nulls: those of the same form by `nulls_of`."""
    pair = unlearned.confidence, retrained.confidence
    parts = resample(*pair, spec, attack, n_resamples=n_resamples, seed=seed, groups=groups)
    return _form(pair, parts, nulls, accuracies_of(unlearned, retrained), spec, attack, seed)


def _null(retrained: np.ndarray, n_models: int, spec: MetricSpec, attack: Attack, seed: int) -> Null | None:
    try:
        return null_quality(retrained, n_models, spec=spec, attack=attack, seed=seed)
    except InputError:  # too few models for any example to get a point
        return None


def accuracies_of(unlearned: Sample, retrained: Sample) -> Accuracies:
    u, r = unlearned.correct, retrained.correct
    return Accuracies(*(x.astype(np.float64) for x in (u["retain"], r["retain"], u["test"], r["test"])))


def _form(
    pair: tuple[np.ndarray, np.ndarray],
    parts: Resamples,
    nulls: Mapping[int, Null | None],
    accuracies: Accuracies | None,
    spec: MetricSpec,
    attack: Attack,
    seed: int,
) -> Form:
    n_models = min(map(len, pair))
    null, at_512 = nulls[n_models], nulls[N_CHECKPOINTS]
    predicted, unpredicted = None, ""
    if n_models < N_CHECKPOINTS:
        attainable = at_512.quality if at_512 else None
        options = {"resamples": parts, "seed": seed, "attainable": attainable}
        try:
            predicted = predict_quality(*pair, N_CHECKPOINTS, spec, attack, **options).quality
            predicted = times_ratio(predicted, accuracies) if accuracies else predicted
        except InputError as reason:
            unpredicted = str(reason)
    return Form(
        quality=quality_interval(parts),
        score=score_interval(parts, accuracies) if accuracies else None,
        null=null.quality if null else None,
        share=share_of_attainable(parts, null, accuracies) if null else None,
        predicted=predicted,
        null_at_512=at_512.quality if at_512 else None,
        unpredicted=unpredicted,
    )


def measures(
    samples: Samples, apart: Mapping[str, Distance] | None = None, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """Other measures of every method, of doing nothing and of retraining itself: name -> measure -> value.

    apart: the samples' `distances`, where the caller has them already. Retraining is measured half against half, but
    for its epsilons and KLOM, which grow as models get fewer: those are brought to the number of models of the others.
    """
    apart = apart or distances(samples)
    half, retrained = samples.n_models // 2, samples.retrained
    pairs = {name: (sample, retrained) for name, sample in samples.beside.items()}
    found = {name: _attacks(*pair, seed) | _epsilons(*pair) for name, pair in pairs.items()}
    halves = retrained.take(slice(0, half)), retrained.take(slice(half, 2 * half))
    found[NULL] = _attacks(*halves, seed) | _null_epsilons(retrained)
    found[NULL][KLOM] *= _klom_effect(retrained.confidence, seed)
    return {name: values | _named(apart[name]) for name, values in found.items()}


def _attacks(unlearned: Sample, retrained: Sample, seed: int) -> dict[str, float | None]:
    found = attack_measures(unlearned.confidence, retrained.confidence, seed)
    return found | {"starting kit's MIA": _logistic_mia(unlearned, seed)}


def attack_measures(u: np.ndarray, r: np.ndarray, seed: int = 0) -> dict[str, float | None]:
    """U-LiRA, true positive rates and KLOM of confidences (n_models, n_examples), unlearned and retrained."""
    lira = families.u_lira(u, r, seed)
    return {
        "U-LiRA accuracy": float(lira.accuracy.mean()),
        "U-LiRA AUC": float(lira.auc.mean()),
        "TPR at 1% FPR": families.tpr_at_fpr(lira.unlearned_scores, lira.retrained_scores, 0.01),
        "TPR at 0.1% FPR": families.tpr_at_fpr(lira.unlearned_scores, lira.retrained_scores, 0.001),
        NOT_NORMAL: families.share_not_normal(u, r) if min(len(u), len(r)) >= FEWEST else None,
        KLOM: _klom(u, r),
    }


def _klom(u: np.ndarray, r: np.ndarray) -> float:
    return float(np.percentile(families.klom(u, r), 95))


def _klom_effect(retrained: np.ndarray, seed: int) -> float:
    """What KLOM of as many models is times that of half as many, of Gaussian samples with their means and spreads."""
    rng, mean, spread = np.random.default_rng(seed), retrained.mean(axis=0), retrained.std(axis=0, ddof=1)
    n = len(retrained)
    whole, half = (_klom(*(mean + spread * rng.normal(size=(2, size, len(mean))))) for size in (n, n // 2))
    return whole / half if half > 0 else 1.0


def _epsilons(unlearned: Sample, retrained: Sample) -> dict[str, float]:
    curve = families.epsilon_of_delta(unlearned.confidence, retrained.confidence, _DELTAS)
    return {_at_delta(delta): float(row.mean()) for delta, row in zip(_DELTAS, curve, strict=True)}


def _null_epsilons(retrained: Sample) -> dict[str, float | None]:
    """As `_epsilons`, of as many retrained models; None where too few say nothing."""
    found = {}
    for delta in _DELTAS:
        options = {} if delta == MetricSpec().delta else {"n_halvings": 4}
        try:
            null = null_quality(retrained.confidence, len(retrained), MetricSpec(delta=delta), **options)
            found[_at_delta(delta)] = null.mean_epsilon
        except InputError:
            found[_at_delta(delta)] = None
    return found


def _at_delta(delta: float) -> str:
    return f"epsilon at delta {delta:g}"


def _named(distance: Distance) -> dict[str, float]:
    """The distances as measures; no similarity ratio where there is none."""
    values = (distance.activation, distance.js, distance.kl, distance.similarity)
    return {name: value for name, value in zip(DISTANCES, values, strict=True) if value is not None}


KLOM = "KLOM (95th percentile)"
NOT_NORMAL = "U-LiRA: examples not normal"  # a condition of the measure, no measure of unlearning
DISTANCES = ("activation distance", "JS divergence", "KL divergence", "similarity ratio")
SMALLER_IS_BETTER = ("epsilon", "KLOM", "activation", "JS", "KL", "TPR", "U-LiRA", "starting kit")


def agreement(scores: Mapping[str, float], measured: Mapping[str, Mapping[str, float]]) -> families.Agreement | None:
    """Rank agreement of the score and every measure over the methods; None below three methods.

    scores: method -> score; measured: method -> measure -> value, turned so that larger is better.
    """
    if len(scores) < 3:
        return None
    columns = {"score": list(scores.values())}
    for measure in next(iter(measured.values())):
        if measure == NOT_NORMAL or any(measured[name][measure] is None for name in scores):
            continue
        sign = -1.0 if measure.startswith(SMALLER_IS_BETTER) else 1.0
        columns[measure] = [sign * measured[name][measure] for name in scores]
    return families.rank_agreement(columns)


def _logistic_mia(sample: Sample, seed: int, n_models: int = 8) -> float | None:
    """Mean accuracy of the starting kit's attack over the first models, each attacked on its own; None where it has
    too few examples of either part to learn from and to be tested on."""
    if min(len(sample.labels[part]) for part in ("forget", "test")) < families.FEWEST_LOSSES:
        return None
    of_part = {
        part: families.losses(sample.logits[part][:n_models], sample.labels[part]) for part in ("forget", "test")
    }
    pairs = zip(of_part["forget"], of_part["test"], strict=True)
    return float(np.mean([families.logistic_mia(forget, test, seed=seed) for forget, test in pairs]))
