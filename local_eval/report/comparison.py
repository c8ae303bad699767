"""The page of several methods: who leads and how surely, what each lacks, and whether other measures agree."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kit.budget import format_duration
from kit.competition import N_CHECKPOINTS
from kit.ledger import write_atomically
from local_eval.assess import FEWEST
from local_eval.audit.intervals import decimals
from local_eval.evaluate import DO_NOTHING, NULL
from local_eval.report import plots
from local_eval.report.assessment import sure
from local_eval.report.evidence import Evidence, methods_of
from local_eval.report.facts import heading, measures_table, setting_facts
from local_eval.report.html import picture, png_uri, render
from local_eval.report.next_step import next_command
from local_eval.report.notes import notes_on
from local_eval.report.verdict import Verdict, expected_share, main_fault, percent, verdict
from local_eval.unlearned import limit_notes

SECTIONS = (
    ("leaderboard", "Leaderboard"),
    ("diagnosis", "Faults"),
    ("order", "Order"),
    ("agreement", "Agreement"),
    ("images", "Images"),
    ("measures", "Measures"),
)
_N_IMAGES = 6


def comparison_page(evidence: Evidence, pages: Mapping[str, str] | None = None, command: str = "") -> str:
    """The HTML of a comparison. pages: name -> address of the method's own page, to link to; command: what makes this
    page again. Methods that are broken or missing are named at the top, the others compared."""
    nothing = _why_nothing(evidence)
    rows, assessed = evidence.rows, bool(evidence.assessments)
    return render(
        "comparison.html",
        title="Comparison of unlearning methods",
        contents=SECTIONS if not evidence.faults else (("faults", "Missing"), *SECTIONS),
        faults=[(name or "the setting", fault) for name, fault in evidence.faults.items()],
        verdict=_leader(evidence),
        board=_board(evidence, pages or {}) if rows else None,
        pictures=_pictures(evidence) if assessed else [],
        diagnoses=_diagnoses(evidence),
        order=_order(evidence) if assessed else None,
        agreement=_agreement(evidence) if assessed else nothing,
        images=_images(evidence) if assessed else nothing,
        nothing=nothing,
        sure=sure,
        measures=measures_table(evidence, list(evidence.pools)) if rows else [],
        notes=[*limit_notes(evidence.pools), *notes_on(list(rows.values()))] if rows else [],
        setting=setting_facts(evidence),
        commands=[command] if command else [],
        **heading(evidence.workspace, "Comparison", ", ".join(evidence.pools)),
    )


def write_comparison(evidence: Evidence, pages: Mapping[str, Path], out: Path, command: str = "") -> Path:
    """The page of a comparison as a file, with links to the pages of its methods."""
    links = {name: Path(os.path.relpath(page, out.resolve().parent)).as_posix() for name, page in pages.items()}
    write_atomically(out, comparison_page(evidence, links, command).encode())
    return out


def _why_nothing(evidence: Evidence) -> str:
    if not evidence.rows:
        return "Nothing to show: no method could be read."
    return f"Nothing to show: below {FEWEST} models and two images this says nothing, and a picture would mislead."


def _leader(evidence: Evidence) -> Verdict:
    """The verdict on the best method, its headline with the name, how surely it leads among the reasons."""
    if not evidence.rows:
        command = next_command(evidence, next(iter(evidence.faults), ""), None)
        return Verdict(None, "Nothing can be said: no method could be read", (), "", command)
    names = sorted(evidence.pools, key=lambda name: -evidence.rows[name].score)
    first, *others = names
    found = replace(verdict(evidence, first), fault="")  # those of all methods stand in the section below
    if not evidence.assessments:
        return replace(found, upload=None)
    if others and (above := evidence.probability_above(first, others[0])) is not None:
        leads = f"{first} scores above {others[0]}, the next, with a probability of {sure(above)}."
        found = replace(found, reasons=(leads, *found.reasons))
    return replace(found, headline=f"{first} leads: {found.headline[0].lower()}{found.headline[1:]}")


def _board(evidence: Evidence, pages: Mapping[str, str]) -> dict[str, Any]:
    """Header and lines of the leaderboard, the best first, doing nothing and the null among them."""
    header = ["method", "upload?", "score", "95% interval", "of the attainable", f"expected at N = {N_CHECKPOINTS}"]
    header += ["mean epsilon", "retain accuracy", "test accuracy", "a checkpoint"]
    names = methods_of(evidence)
    lines = []
    if NULL in evidence.rows:
        names.insert(0, NULL)
    for place, name in enumerate(names, 0 if NULL in names else 1):
        row = evidence.rows[name]
        form = evidence.assessments[name].forms[evidence.attacks] if name in evidence.assessments else None
        score = form.score if form else None
        share = expected_share(form) if form else None
        lines.append(
            {
                "name": f"{place} {name}" if name != NULL else "null: retrained against retrained",
                "page": pages.get(name),
                "texts": [
                    _upload(evidence, name),
                    decimals(row.score),
                    f"{decimals(score.low)}–{decimals(score.high)}" if score else "-",
                    percent(form.share.value) if form and form.share else "-",
                    f"{decimals(form.predicted.value)} ({percent(share.value)})"
                    if form and form.predicted and share
                    else "-",
                    f"{row.mean_epsilon:.2f}",
                    f"×{row.retain_ratio:.3f}",
                    f"×{row.test_ratio:.3f}",
                    format_duration(row.seconds) if row.seconds and name != NULL else "-",
                ],
            }
        )
    return {"header": header, "lines": lines}


def _upload(evidence: Evidence, name: str) -> str:
    if name not in evidence.pools or name not in evidence.assessments:
        return "-"
    return {None: "?", True: "yes", False: "no"}[verdict(evidence, name).upload]


def _pictures(evidence: Evidence) -> list[dict]:
    names, styles = methods_of(evidence), _styles(evidence)
    scores = {name: evidence.assessments[name].forms[evidence.attacks].score for name in names}
    null = next(iter(evidence.assessments.values())).forms[evidence.attacks].null
    marks = [plots.Mark(name, s.value, s.low, s.high, *styles.get(name, ("quiet", ""))) for name, s in scores.items()]
    on_ruler = list(marks)
    if null:
        on_ruler.insert(
            0, plots.Mark("null: retrained against retrained", null.value, null.low, null.high, "retrained")
        )
    found = [
        picture(
            plots.ruler(on_ruler, null.value if null else None),
            "Scores on one axis: " + "; ".join(f"{mark.label} {decimals(mark.value)}" for mark in on_ruler),
            "Scores with 95% intervals over models and images, up to the null, the most there is to reach.",
        )
    ]
    timed = [(place, mark) for place, mark in enumerate(marks, 1) if evidence.rows[mark.label].seconds > 0]
    if timed and null:
        retraining = evidence.samples.retrained.seconds.mean()
        seconds = [evidence.rows[mark.label].seconds for _, mark in timed]
        told = "; ".join(f"{p} {m.label}, {format_duration(s)}" for (p, m), s in zip(timed, seconds, strict=True))
        numbered = [replace(mark, label=str(place)) for place, mark in timed]
        found.append(
            picture(
                plots.score_seconds(numbered, seconds, null.value, float(retraining) or None),
                f"Score against seconds a checkpoint: {told}",
                f"What a score costs in time of one process of this machine: {told}.",
            )
        )
    return found


def _styles(evidence: Evidence) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method, the same in all pictures of the page."""
    return {name: plots.method_style(place) for place, name in enumerate(evidence.pools)}


def _diagnoses(evidence: Evidence) -> list[tuple[str, str]]:
    names = [name for name in methods_of(evidence) if name in evidence.assessments] if evidence.rows else []
    faults = {name: main_fault(a, a.forms[evidence.attacks]) for name, a in evidence.assessments.items()}
    return [(name, faults[name]) for name in names if name != DO_NOTHING]


def _order(evidence: Evidence) -> dict[str, Any]:
    """Probability of each line above each column, and the expected place: 1 plus those of being below."""
    names = methods_of(evidence)
    lines = []
    for name in names:
        cells = [None if other == name else evidence.probability_above(name, other) for other in names]
        lines.append({"name": name, "cells": cells, "place": 1 + sum(1 - p for p in cells if p is not None)})
    return {"lines": lines}


def _agreement(evidence: Evidence) -> Any:
    """How each measure ranks the methods compared with the score: a picture, and the table of all pairs."""
    found = evidence.agreement
    if found is None:
        n = len(evidence.pools)
        return f"Whether measures rank methods alike can be asked of three methods or more: here are {n}."
    at = found.names.index("score")
    with_score = {name: found.spearman[at, i] for i, name in enumerate(found.names) if i != at}
    known = {name: value for name, value in with_score.items() if not np.isnan(value)}
    told = "; ".join(f"{name} {value:+.2f}" for name, value in known.items())
    silent = [name for name in with_score if name not in known]
    caption = (
        f"Spearman's rank correlation with the score over {len(evidence.pools)} methods; measures are turned so that "
        "larger is better. 1: the same order, -1: the reverse. With so few methods single swaps weigh much."
    )
    if silent:
        caption += f" No order at all: {', '.join(silent)}."
    table = [("Spearman", *found.names)]
    for name, values in zip(found.names, found.spearman, strict=True):
        table.append((name, *("-" if np.isnan(value) else f"{value:+.2f}" for value in values)))
    return {"pictures": [picture(plots.agreement(known), f"Agreement with the score: {told}", caption)], "table": table}


def _images(evidence: Evidence) -> list[dict]:
    """The images of the largest mean epsilon over the methods, with the confidences under each of them."""
    splits, samples = evidence.workspace.splits, evidence.samples
    epsilons = {name: evidence.rows[name].epsilon for name in evidence.pools}
    shift = np.mean([np.abs(evidence.assessments[name].diagnosis.shift) for name in evidence.pools], axis=0)
    order = np.lexsort((shift, np.mean(list(epsilons.values()), axis=0)))[::-1]
    cards = []
    for row in order[:_N_IMAGES].tolist():
        confidences = {name: samples.methods[name].confidence[:, row] for name in evidence.pools}
        styles = _styles(evidence) | {"retrained": ("retrained", "o")}
        confidences["retrained"] = samples.retrained.confidence[:, row]
        what = str(splits.class_names[int(splits.forget.labels[row])])
        told = {name: f"ε {epsilons[name][row]:.1f}" for name in evidence.pools}
        cards.append(
            {
                "image": png_uri(splits.forget.images[row]),
                "alt": f"forgotten image {splits.forget.ids[row]}, {what}",
                "name": what,
                "lines": [str(splits.forget.ids[row])],
                "picture": picture(
                    plots.strips(confidences, styles, told),
                    "Confidences on this image: " + ", ".join(f"{name} {note}" for name, note in told.items()),
                ),
            }
        )
    return cards
