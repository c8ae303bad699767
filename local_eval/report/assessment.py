"""Assessments as lines for the terminal and as plain values for JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from local_eval.assess import Assessment
from local_eval.audit.families import Agreement
from local_eval.audit.intervals import Interval, decimals
from local_eval.audit.predict import RANKABLE
from local_eval.metric.spec import N_CHECKPOINTS
from local_eval.report.table import aligned

_FEW_EXAMPLES = 30
_LISTED = 10  # examples named in a line


def interval_text(interval: Interval | None) -> str:
    """Four decimals, and more where a small value would keep fewer than two digits."""
    if interval is None:
        return "-"
    seen = interval.value or interval.high
    digits = 4 if seen <= 0 else max(4, 1 - int(np.floor(np.log10(seen))))
    value, low, high = (decimals(number, digits) for number in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def assessment_lines(assessment: Assessment) -> list[str]:
    """What a method's score is worth, in a few lines."""
    header = ("attacks", "score", "F", "null F", "share of attainable", f"predicted at N = {N_CHECKPOINTS}")
    rows = [
        (
            name,
            *map(interval_text, (form.score, form.quality, form.null)),
            _share(form.share),
            interval_text(form.predicted),
        )
        for name, form in assessment.forms.items()
    ]
    bounds = assessment.lower_bounds
    lines = [
        f"{assessment.name} (N = {assessment.n_models}, 95% intervals over models and examples)",
        *("  " + line for line in aligned([header, *rows])),
    ]
    lines += [
        f"  no prediction at N = {N_CHECKPOINTS} ({name}): {form.unpredicted}"
        for name, form in assessment.forms.items()
        if form.unpredicted
    ]
    if assessment.retain_ratio and assessment.test_ratio:
        lines.append(
            f"  retain accuracy {interval_text(assessment.retain_ratio)} and test accuracy "
            f"{interval_text(assessment.test_ratio)} times the retrained models'"
        )
    if bounds.epsilon.any():
        lines.append(
            f"  epsilon is at least {bounds.epsilon.mean():.2f} on average (each bound holds with "
            f"{1 - bounds.failure:.0%}, counted on {bounds.n_held_out[0]} held-out models)"
        )
    else:
        lines.append(
            f"  epsilon is at least: - (no attack chosen on half of the models holds on the other "
            f"{bounds.n_held_out[0]} with {1 - bounds.failure:.0%})"
        )
    if assessment.n_independent is not None and assessment.n_independent < _FEW_EXAMPLES:
        lines.append(
            f"  the intervals rest on {assessment.n_independent} independent examples (subjects, where these are "
            f"known): below {_FEW_EXAMPLES} they cover less than they say"
        )
    for examples, why in (
        (assessment.discarded, "every attack on them is discarded"),
        (assessment.too_tight, "one sample is a hundred times as narrow as the other"),
    ):
        if len(examples):
            listed = ", ".join(map(str, examples[:_LISTED])) + (", ..." if len(examples) > _LISTED else "")
            lines.append(f"  {len(examples)} examples have the largest epsilon unmeasured, {why}: {listed}")
    return [*lines, f"  {assessment.sentence}"]


def _share(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    value, low, high = (f"{decimals(100 * share, 1)}%" for share in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def measure_lines(measured: Mapping[str, Mapping[str, float | None]], without: Sequence[str] = ()) -> list[str]:
    """One table: a row a measure (less those named in `without`), a column a method."""
    names = list(measured)
    header = ("measure", *(name.split(" (")[0] for name in names))
    rows = [
        (measure, *("-" if (value := measured[name][measure]) is None else f"{value:.4g}" for name in names))
        for measure in next(iter(measured.values()))
        if measure not in without
    ]
    return aligned([header, *rows])


def probability_lines(above: Mapping[tuple[str, str], float], n_models: int) -> list[str]:
    """How sure the order of two methods is; where too few models carry no such sentence, that."""
    if above and n_models < RANKABLE:
        return [f"which of two scores higher cannot be told from {n_models} models: that needs {RANKABLE}"]
    return [f"{a} scores above {b} with probability {sure(probability)}" for (a, b), probability in above.items()]


def sure(probability: float) -> str:
    """A probability in words: no 0% and no 100%."""
    return "over 99.9%" if probability > 0.999 else "under 0.1%" if probability < 0.001 else f"{probability:.1%}"


def agreement_lines(agreement: Agreement) -> list[str]:
    """How each measure ranks the methods compared with the score."""
    row = agreement.names.index("score")
    table = [("agreement with the score", "Spearman", "Kendall")]
    for column, name in enumerate(agreement.names):
        if column != row:
            values = (agreement.spearman[row, column], agreement.kendall[row, column])
            table.append((name, *("-" if np.isnan(v) else f"{v:+.2f}" for v in values)))
    return aligned(table)


def assessment_facts(
    assessments: Sequence[Assessment],
    above: Mapping[tuple[str, str], float],
    measured: Mapping[str, Mapping[str, float | None]],
    agreement: Agreement | None,
) -> dict[str, Any]:
    """The same as plain JSON values, with the parts of each epsilon."""
    return {
        "assessments": [_facts(assessment) for assessment in assessments],
        "probability_above": [{"method": a, "other": b, "probability": p} for (a, b), p in above.items()],
        "measures": {name: dict(values) for name, values in measured.items()},
        "agreement": None
        if agreement is None
        else {
            "names": agreement.names,
            "spearman": np.where(np.isnan(agreement.spearman), None, agreement.spearman).tolist(),
            "kendall": np.where(np.isnan(agreement.kendall), None, agreement.kendall).tolist(),
        },
    }


def _facts(assessment: Assessment) -> dict[str, Any]:
    d, bounds = assessment.diagnosis, assessment.lower_bounds
    per_example = {
        name: getattr(d, name).tolist() for name in ("epsilon", "from_shift", "from_spread", "rest", "shift")
    }
    return {
        "name": assessment.name,
        "n_models": assessment.n_models,
        "forms": {name: asdict(form) for name, form in assessment.forms.items()},
        "retain_ratio": assessment.retain_ratio and asdict(assessment.retain_ratio),
        "test_ratio": assessment.test_ratio and asdict(assessment.test_ratio),
        "discarded": assessment.discarded.tolist(),
        "too_tight": assessment.too_tight.tolist(),
        "sentence": assessment.sentence,
        "diagnosis": {**per_example, "spread_ratio": d.spread_ratio.tolist()},
        "lower_bounds": {
            "epsilon": bounds.epsilon.tolist(),
            "failure": bounds.failure,
            "n_held_out": bounds.n_held_out,
        },
    }
