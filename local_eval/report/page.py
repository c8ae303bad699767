"""The page of one evaluation: upload or not, how well each image is forgotten, and everything behind it."""

from pathlib import Path
from typing import Any

import numpy as np

from kit.budget import format_duration
from kit.competition import N_CHECKPOINTS
from local_eval.assess import FEWEST, Assessment
from local_eval.audit import families
from local_eval.audit.intervals import decimals
from local_eval.audit.tradeoff import tradeoff
from local_eval.evaluate import DO_NOTHING, NULL, Row
from local_eval.metric import exact_epsilon
from local_eval.report import kaggle, plots
from local_eval.report.evidence import Evidence
from local_eval.report.facts import commands, heading, measures_table, setting_facts
from local_eval.report.html import picture, render
from local_eval.report.images import card, extremes, maps_or_reason
from local_eval.report.notes import TIME_LIMIT, notes_on
from local_eval.report.saliency import Nets
from local_eval.report.timing import Timing, timing_of
from local_eval.report.verdict import expected_share, percent, verdict
from local_eval.unlearned import limit_notes

SECTIONS = (
    ("verdict", "Verdict"),
    ("epsilons", "Epsilons"),
    ("images", "Images"),
    ("attacks", "Attacks"),
    ("accuracies", "Accuracies"),
    ("time", "Time"),
    ("saliency", "Saliency"),
    ("measures", "Measures"),
)
_DELTAS = np.geomspace(1e-5, 0.5, 20)
_MOST_CLASSES = 12
_N_CURVES = 60  # examples whose trade-off is computed


def evaluation_page(evidence: Evidence, name: str, archive: Path | None = None, nets: Nets | None = None) -> str:
    """The HTML of one method's page. A method that is broken, or too few models, gives a page that says so.

    archive: where the pool came from, if from an archive; nets: the models of the activation maps, if they are wanted.
    """
    sections: dict[str, Any] = {key: _nothing_to_show(evidence, name) for key, _ in SECTIONS[1:-1]}
    sections |= {"numbers": (), "rulers": (), "measures": (), "notes": ()}
    if name in evidence.rows:
        timing = timing_of(evidence.pools[name], evidence.samples.methods[name].seconds, archive)
        sections |= {"accuracies": _accuracies(evidence, name), "time": _time(evidence, timing)}
        sections |= {"measures": measures_table(evidence, [name]), "notes": _notes(evidence, name)}
        sections["saliency"] = _saliency(evidence, name, nets) if nets else "Left out, as asked for."
    if name in evidence.assessments:
        assessment = evidence.assessments[name]
        sections |= {"numbers": _numbers(evidence, name, assessment), "rulers": _rulers(evidence, name)}
        sections |= {"epsilons": _epsilons(evidence, name, assessment), "images": _images(evidence, name, assessment)}
        sections["attacks"] = _attacks(evidence, name)
    null = evidence.null
    return render(
        "evaluation.html",
        title=f"{name}: evaluation of an unlearning method",
        contents=SECTIONS,
        verdict=verdict(evidence, name),
        cap=f"{evidence.spec.cap:g}",
        chance=f"{null.mean_epsilon:.1f}" if null else "1.6",
        setting=setting_facts(evidence, name),
        commands=commands(evidence, name, archive),
        **heading(evidence.workspace, name, _hyper(evidence, name)),
        **sections,
    )


def _notes(evidence: Evidence, name: str) -> list[str]:
    return [*limit_notes({name: evidence.pools[name]}), *notes_on(_rows_beside(evidence, name))]


def _rows_beside(evidence: Evidence, name: str) -> list[Row]:
    """The rows that this page speaks of: the method's own and those that every method is seen beside."""
    shown = {name, evidence.starter, DO_NOTHING, NULL}
    return [row for row in evidence.rows.values() if row.name in shown]


def _hyper(evidence: Evidence, name: str) -> str:
    pool = evidence.pools.get(name)
    hyper = pool.identity.get("hyper", {}) if pool else {}
    return ", ".join(f"{key} {value}" for key, value in hyper.items())


def _nothing_to_show(evidence: Evidence, name: str) -> str:
    """Why a section is empty, for the sections that are."""
    if evidence.faults.get("") or name in evidence.faults:
        return "Nothing to show: the evaluation is broken, see the verdict."
    return f"Nothing to show: below {FEWEST} models and two images this says nothing, and a picture would mislead."


def _numbers(evidence: Evidence, name: str, assessment: Assessment) -> list[tuple[str, str]]:
    """The tiles: a value, and what it is."""
    row, form = evidence.rows[name], assessment.forms[evidence.attacks]
    tiles = [(decimals(row.score), f"score with {row.n_models} models")]
    if form.share:
        tiles.append((percent(form.share.value), f"of the attainable {form.null.value:.3f}"))
    if form.predicted and (share := expected_share(form)):
        tiles.append((decimals(form.predicted.value), f"expected with {N_CHECKPOINTS} models, {percent(share.value)}"))
    tiles.append((f"{row.mean_epsilon:.2f}", f"mean epsilon; chance gives {evidence.null.mean_epsilon:.2f}"))
    tiles.append((f"{row.retain_ratio:.2f} · {row.test_ratio:.2f}", "retain and test accuracy, times the retrained"))
    if row.seconds:
        tiles.append((format_duration(row.seconds), "a checkpoint, on one process"))
    return tiles


def _rulers(evidence: Evidence, name: str) -> list[dict]:
    forms = {method: a.forms[evidence.attacks] for method, a in evidence.assessments.items()}
    form = forms[name]
    nothing = evidence.rows.get(DO_NOTHING)
    marks = [plots.Mark("do nothing", nothing.score)] if nothing else []
    if evidence.starter and evidence.starter != name:
        score = forms[evidence.starter].score
        marks.append(plots.Mark("starter's fine-tuning", score.value, score.low, score.high))
    label = f"{name} (the starter's own)" if evidence.starter == name else name
    own = plots.Mark(label, form.score.value, form.score.low, form.score.high, "unlearned")
    end = None
    marks.append(own)
    if form.null:
        end = form.null.value
        marks.append(plots.Mark("null: retrained against retrained", end, form.null.low, form.null.high, "retrained"))
    label = "; ".join(f"{mark.label} {decimals(mark.value)}" for mark in marks)
    found = [
        picture(
            plots.ruler(marks, end),
            f"Scores on one axis: {label}",
            f"The score in this setting, with {evidence.rows[name].n_models} models, up to the null, which is the most "
            "there is to reach. Bars are 95% intervals.",
        )
    ]
    known = [plots.Mark(k.label, k.score) for k in kaggle.KNOWN]
    if form.predicted:
        p = form.predicted
        known.append(plots.Mark(f"{name}, expected at N = {N_CHECKPOINTS}", p.value, p.low, p.high, "unlearned"))
        known.sort(key=lambda mark: -mark.value)
        here = f"; here it is {nothing.retain_accuracy - nothing.test_accuracy:.1%}" if nothing else ""
        found.append(
            picture(
                plots.ruler(known, kaggle.ATTAINABLE),
                "Known Kaggle scores beside the expected one: "
                + "; ".join(f"{mark.label} {decimals(mark.value)}" for mark in known),
                f"The score expected with {N_CHECKPOINTS} models beside scores known from Kaggle. Context, no "
                f"forecast: those come from hidden data and a ResNet-18 with a generalisation gap of "
                f"{kaggle.GENERALISATION_GAP:.1%}{here}.",
            )
        )
    return found


def _epsilons(evidence: Evidence, name: str, assessment: Assessment) -> list[dict]:
    row, null, spec = evidence.rows[name], evidence.null, evidence.spec
    n_bins = spec.n_bins(row.n_models)
    end = n_bins * spec.bin_width
    beyond, chance = (float((r.epsilon >= end).mean()) for r in (row, null))
    d = assessment.diagnosis
    shift, spread = (max(float(part.mean()), 0.0) for part in (d.from_shift, d.from_spread))
    total = shift + spread
    shares = (
        f"Of the avoidable epsilon {spread / total:.0%} comes from the spread, {shift / total:.0%} from the mean"
        if total > 0
        else "None of the epsilon could be avoided by mending mean or spread"
    )
    at_least = assessment.lower_bounds
    n_capped = int((row.epsilon >= spec.cap).sum())
    capped = (
        f" {n_capped} of {len(row.epsilon)} have the largest, {spec.cap:g}, and lie on the edge." if n_capped else ""
    )
    return [
        picture(
            plots.epsilon_histogram(row.epsilon, null.epsilon, spec, row.n_models),
            f"Histogram of epsilon over {len(row.epsilon)} forgotten images in bins of {spec.bin_width:g}. "
            f"{beyond:.0%} lie beyond the last bin, of retrained models {chance:.0%}.",
            f"The score's own bins: the first gives an image 1 point, each further one half of it. {beyond:.0%} of the "
            f"images lie beyond the last bin and give none; between retrained models "
            f"{chance:.0%} do.",
        ),
        picture(
            plots.epsilon_sorted(row.epsilon, at_least.epsilon, null.epsilon, spec),
            f"Epsilon of every forgotten image in order: median {np.median(row.epsilon):.2f}, for retrained models "
            f"{np.median(null.epsilon):.2f}.",
            f"Every image once: half have an epsilon above {np.median(row.epsilon):.1f}; between retrained models "
            f"above {np.median(null.epsilon):.1f}. Dotted: what it is at least, counted on models held out, with "
            f"{1 - at_least.failure:.0%} confidence for each image.{capped}",
        ),
        picture(
            plots.faults(d),
            f"Each forgotten image by how far the mean confidence is off and by how widely runs spread: medians "
            f"{np.median(d.shift):+.2f} standard deviations and {np.median(d.spread_ratio):.2f} times.",
            f"Mean shifted against wrong spread, a dot an image; the box holds what chance alone gives. {shares}.",
        ),
    ]


def _images(evidence: Evidence, name: str, assessment: Assessment) -> dict[str, list[dict]]:
    splits, samples = evidence.workspace.splits, evidence.samples
    worst, best = extremes(assessment)
    return {
        key: [card(splits, samples, name, assessment, row, evidence.spec) for row in rows]
        for key, rows in (("worst", worst), ("best", best))
    }


def _attacks(evidence: Evidence, name: str) -> list[dict]:
    unlearned, retrained = evidence.samples.methods[name].confidence, evidence.samples.retrained.confidence
    half = len(retrained) // 2
    pairs = (unlearned, retrained), (retrained[:half], retrained[half : 2 * half])
    chosen = np.unique(np.linspace(0, unlearned.shape[1] - 1, _N_CURVES).astype(int))
    curves = [tradeoff(u[:, chosen], r[:, chosen]) for u, r in pairs]
    at_tenth = [float(np.median(curve[int(0.1 * (len(curve) - 1))])) for curve in curves]
    epsilons = [families.epsilon_of_delta(u, r, _DELTAS, evidence.spec, exact_epsilon) for u, r in pairs]
    top = float(np.clip(np.ceil(2.2 * np.percentile(epsilons[0][0], 90)) / 2, 4, evidence.spec.cap))
    medians = [np.median(epsilon, axis=1) for epsilon in epsilons]
    return [
        picture(
            plots.tradeoff(*curves),
            "Trade-off of false positives and false negatives. At a false positive rate of 10% the best attack on "
            f"the median image misses {at_tenth[0]:.0%} of the unlearned models; between retrained models "
            f"{at_tenth[1]:.0%}.",
            f"The best attack on the median image (bold; thin: single images). Where one retrained model in ten is "
            f"taken for unlearned, it misses {at_tenth[0]:.0%} of the unlearned ones; between retrained models, "
            f"{half} against {half}, {at_tenth[1]:.0%}. Further to the lower left: given away more.",
        ),
        picture(
            plots.epsilon_delta(_DELTAS, epsilons[0], epsilons[1], top),
            f"Median epsilon against delta: {medians[0][0]:.2f} at delta 1e-5, {medians[0][-1]:.2f} at 0.5; between "
            f"retrained models {medians[1][0]:.2f} and {medians[1][-1]:.2f}.",
            "How epsilon falls when more failure is allowed (exact form of the attacks; band: the middle 80% of the "
            "images). The score reads the left end. A curve that stays high is given away for sure, not by chance.",
        ),
    ]


def _accuracies(evidence: Evidence, name: str) -> list[dict]:
    samples = evidence.samples
    unlearned, retrained = samples.methods[name], samples.retrained
    start = samples.original.accuracy if samples.original is not None else {}
    original = {part: float(values.mean()) for part, values in start.items()}
    parts = [part for part in ("retain", "forget", "test", "forgotten_test") if part in unlearned.accuracy]
    of_u, of_r = ({part: sample.accuracy[part] for part in parts} for sample in (unlearned, retrained))
    means = "; ".join(f"{part} {of_u[part].mean():.1%} against {of_r[part].mean():.1%}" for part in parts)
    found = [
        picture(
            plots.accuracies(of_u, of_r, original),
            f"Accuracies of every model, unlearned against retrained: {means}.",
            f"Every model once, bars at the means: {means} (retrained). On the forgotten images the retrained models "
            "set the mark, not 0.",
        )
    ]
    for part, title in (("forget", "forgotten images"), ("test", "test images")):
        figure, text = _by_class(evidence, name, part, f"accuracy by class, {title}")
        if figure is not None:
            found.append(picture(figure, f"Accuracy by class on the {title}: {text}", f"By class, {title}: {text}"))
    return found


def _by_class(evidence: Evidence, name: str, part: str, title: str) -> tuple[Any, str]:
    """The picture of one part's accuracies by class, and its sentence; (None, "") where there is one class only."""
    samples, names = evidence.samples, evidence.workspace.splits.class_names
    labels = samples.retrained.labels[part]
    classes = np.unique(labels)
    if len(classes) < 2:
        return None, ""
    u, r = (
        np.stack([sample.correct[part][:, labels == c].mean(axis=1) for c in classes], axis=1)
        for sample in (samples.methods[name], samples.retrained)
    )
    gap = u.mean(axis=0) - r.mean(axis=0)
    shown = np.sort(np.argsort(-np.abs(gap), kind="stable")[:_MOST_CLASSES])
    worst = int(np.argmax(np.abs(gap)))
    text = f"furthest off is {names[classes[worst]]}, by {100 * gap[worst]:+.0f} points. Bars: one standard deviation."
    if len(shown) < len(classes):
        text += f" The {len(shown)} furthest of {len(classes)} classes."
    labels_shown = [str(names[c]) for c in classes[shown]]
    return plots.class_accuracies(labels_shown, u[:, shown], r[:, shown], title), text


def _time(evidence: Evidence, timing: Timing) -> Any:
    if not timing.seconds.sum() > 0:
        return "The time of these checkpoints is not known: no ledger of theirs lies beside the files they came from."
    retraining = evidence.samples.retrained.seconds
    retraining_s = float(retraining.mean()) if retraining.mean() > 0 else None
    mean = float(timing.seconds.mean())
    projected = mean * N_CHECKPOINTS
    return {
        "sentence": timing.sentence(),
        "pictures": [
            picture(
                plots.timeline(timing.seconds, N_CHECKPOINTS, kaggle.LIMIT_S, timing.plans, timing.limit_s),
                f"{len(timing.seconds)} checkpoints in {format_duration(timing.seconds.sum())}; {N_CHECKPOINTS} would "
                f"take {format_duration(projected)}.",
                f"At this pace {N_CHECKPOINTS} checkpoints take {format_duration(projected)} on one process of this "
                f"machine ({projected / kaggle.LIMIT_S:.0%} of the 8 hours). Kaggle's GPU and its ResNet-18 differ: "
                "python -m kit profile measures there.",
            ),
            picture(
                plots.checkpoint_seconds(timing.seconds, retraining_s, TIME_LIMIT),
                f"Seconds of each checkpoint: mean {mean:.1f}, from {timing.seconds.min():.1f} to "
                f"{timing.seconds.max():.1f}.",
                f"Each checkpoint: {format_duration(mean)} on average, from {format_duration(timing.seconds.min())} to "
                f"{format_duration(timing.seconds.max())}.",
            ),
        ],
    }


def _saliency(evidence: Evidence, name: str, nets: Nets) -> Any:
    if not nets.nets:
        return " ".join(nets.missing)
    workspace = evidence.workspace
    forget, retain = workspace.splits.forget, workspace.evaluated()["retain"]
    if name in evidence.assessments:
        worst, best = extremes(evidence.assessments[name])
        rows = worst[:2] + [row for row in best if row not in worst[:2]][:1]
    else:
        rows = list(range(min(3, len(forget))))
    retained = np.linspace(0, len(retain) - 1, 3).astype(int).tolist()
    groups = {"Forgotten images": (forget, rows), "Retained images": (retain, retained)}
    found = maps_or_reason(workspace.splits, groups, nets)
    if isinstance(found, str):
        return found
    both = {"unlearned", "retrained"} <= nets.nets.keys()
    return {"groups": found, "sentences": nets.missing, "both": both}
