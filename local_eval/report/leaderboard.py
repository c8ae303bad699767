"""The leaderboard as lines for the terminal, as plain values for JSON and CSV, and as a page whose columns sort."""

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.budget import format_duration
from kit.competition import N_CHECKPOINTS
from local_eval.audit.intervals import Interval, decimals
from local_eval.dry_run.projection import EPOCH_S
from local_eval.evaluate import DO_NOTHING, NULL
from local_eval.leaderboard import UNKNOWN, Entry, Leaderboard
from local_eval.metric import MetricSpec
from local_eval.report import plots
from local_eval.report.evidence import Evidence
from local_eval.report.facts import heading, setting_facts
from local_eval.report.html import picture, render
from local_eval.report.notes import notes_on
from local_eval.report.pages import PAGE
from local_eval.report.verdict import percent
from local_eval.setting import Workspace

SECTIONS = (("board", "Leaderboard"), ("scores", "Scores"), ("setting", "Setting"))
_LONGEST_LABEL = 38
NULL_NAME = "null: retrained against retrained"
T4_NOTE = (
    f"{N_CHECKPOINTS} in 8 h on a T4: hours on one T4, from each method's time as a multiple of the starter's "
    f"fine-tuning here and {EPOCH_S['T4']} s for an epoch of that on the competition's data; within a factor of two. A "
    "method that takes a plan is shortened to fit"
)


@dataclass(frozen=True)
class Cell:
    """Of the table: its text, and what it sorts by, None where it holds nothing."""

    text: str
    value: float | str | None


COLUMNS = (
    "method",
    "score",
    "95% interval",
    "of the null",
    f"at N = {N_CHECKPOINTS}",
    "retain",
    "forget",
    "test",
    "a checkpoint",
    "8 h on a T4",
    "Kaggle",
)


def cells(entry: Entry) -> list[Cell]:
    """One for each of COLUMNS."""
    score = entry.score
    times = f"{entry.fits_t4}, {entry.hours_on_t4:.1f} h" if entry.hours_on_t4 is not None else UNKNOWN
    timed = entry.name not in (NULL, DO_NOTHING) and not entry.fault
    interval = f"{decimals(score.low)}-{decimals(score.high)}" if score else "-"
    return [
        Cell(NULL_NAME if entry.name == NULL else entry.name, entry.name),
        Cell("failed", None) if entry.fault else _score(score and score.value),
        Cell(interval, score.low if score else None),
        Cell(percent(entry.share.value) if entry.share else "-", entry.share.value if entry.share else None),
        _score(entry.predicted and entry.predicted.value),
        *(_number(value, ".1%") for value in (entry.retain_accuracy, entry.forget_accuracy, entry.test_accuracy)),
        Cell(format_duration(entry.seconds) if entry.seconds else "-", entry.seconds or None),
        Cell(times if timed else "-", entry.hours_on_t4 if timed else None),
        _score(entry.kaggle),
    ]


def _number(value: float | None, form: str) -> Cell:
    return Cell("-" if value is None else f"{value:{form}}", value)


def _score(value: float | None) -> Cell:
    return Cell(decimals(value), value)


def in_order(board: Leaderboard) -> list[Entry]:
    """The null, then every method and doing nothing by score, then what failed."""
    sound = [entry for entry in board.entries if not entry.fault]
    sound = sorted([*sound, board.nothing], key=lambda entry: -entry.score.value)
    return [board.null, *sound, *(entry for entry in board.entries if entry.fault)]


def board_table(board: Leaderboard) -> list[tuple[str, ...]]:
    """Header first."""
    return [COLUMNS, *(tuple(cell.text for cell in cells(entry)) for entry in in_order(board))]


def board_notes(board: Leaderboard) -> list[str]:
    """What failed and why, what is not predicted and why, and what must be known to read the table."""
    notes = [f"{entry.name} failed: {entry.fault}" for entry in board.entries if entry.fault]
    silent: dict[str, list[str]] = {}
    for entry in [*board.entries, board.nothing]:
        if entry.unpredicted:
            silent.setdefault(entry.unpredicted, []).append(entry.name)
    notes += [f"no score at N = {N_CHECKPOINTS} for {', '.join(names)}: {reason}" for reason, names in silent.items()]
    notes.append(T4_NOTE)
    if all(entry.hours_on_t4 is None for entry in board.entries):
        notes.append("the hours on a T4 are unknown, as the board has no models of finetune, the starter's")
    return notes + notes_on(board.rows)


def board_rows(board: Leaderboard) -> list[dict[str, Any]]:
    """Every entry as plain values with names of their own, None where there is nothing."""
    return [_row(place, entry) for place, entry in _places(board)]


def _places(board: Leaderboard) -> Iterator[tuple[int | None, Entry]]:
    """Of methods, from 1 on; none for what failed, doing nothing and the null."""
    place = 0
    for entry in in_order(board):
        counts = entry.name not in (NULL, DO_NOTHING) and not entry.fault
        place += counts
        yield place if counts else None, entry


def _row(place: int | None, entry: Entry) -> dict[str, Any]:
    row = {"place": place, "method": entry.name.partition(" (")[0] if entry.name == NULL else entry.name}
    for name, interval in (
        ("score", entry.score),
        ("share_of_null", entry.share),
        (f"score_at_{N_CHECKPOINTS}", entry.predicted),
    ):
        row |= _spread(name, interval)
    return {
        **row,
        "unpredicted": entry.unpredicted,
        "retain_accuracy": entry.retain_accuracy,
        "forget_accuracy": entry.forget_accuracy,
        "test_accuracy": entry.test_accuracy,
        "seconds": entry.seconds,
        "hours_on_t4": entry.hours_on_t4,
        "fits_8h_on_t4": entry.fits_t4,
        "kaggle": entry.kaggle,
        "fault": entry.fault,
        "settings": {
            name: value if isinstance(value, int | float | str) else str(value)
            for name, value in entry.settings.items()
        },
    }


def _spread(name: str, interval: Interval | None) -> dict[str, float | None]:
    ends = (interval.value, interval.low, interval.high) if interval else (None, None, None)
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))


def board_csv(board: Leaderboard) -> str:
    """The same as CSV with a header; settings as `name=value; name=value`."""
    rows = board_rows(board)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, "settings": "; ".join(f"{name}={value}" for name, value in row["settings"].items())})
    return text.getvalue()


def board_page(
    workspace: Workspace, board: Leaderboard, spec: MetricSpec, attacks: str, command: str, beside: Path
) -> str:
    """The HTML of the board. beside: the folder that the page goes to, from which a method's own page is linked."""
    pairs = [*setting_facts(Evidence(workspace, {}, {}, spec, attacks)), ("models", f"{board.n_models} of each kind")]
    return render(
        "leaderboard.html",
        title="Leaderboard of unlearning methods",
        contents=SECTIONS,
        columns=COLUMNS,
        lines=[
            {"cells": cells(entry), "page": _page_of(entry, beside), "place": place, "fault": entry.fault}
            for place, entry in _places(board)
        ],
        pieces=re.compile(r"(?<=[(_])").split,
        pictures=[_picture(board)],
        notes=board_notes(board),
        setting=pairs,
        hyper=[(entry.name, _hyper(entry.settings)) for entry in board.entries if entry.settings],
        command=command,
        **heading(workspace, "Leaderboard", _summary(board)),
    )


def _summary(board: Leaderboard) -> str:
    n_failed = sum(bool(entry.fault) for entry in board.entries)
    failed = f", {n_failed} of them failed" if n_failed else ""
    return f"{len(board.entries)} methods{failed}, {board.n_models} models of each against {board.n_models} retrained"


def _page_of(entry: Entry, beside: Path) -> str | None:
    """The address of the method's own page, where it has one."""
    if entry.pool is None or not (page := entry.pool / PAGE).exists():
        return None
    return Path(os.path.relpath(page.resolve(), beside.resolve())).as_posix()


def _hyper(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _label(name: str) -> str:
    """A name that leaves room for the number behind it."""
    name = NULL_NAME if name == NULL else name
    return name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 12]}…{name[-11:]}"


def _picture(board: Leaderboard) -> dict[str, Any]:
    roles = {NULL: "retrained", DO_NOTHING: "quiet"}
    marks = [
        plots.Mark(
            _label(entry.name),
            entry.score.value,
            entry.score.low,
            entry.score.high,
            roles.get(entry.name, "unlearned"),
        )
        for entry in in_order(board)
        if entry.score
    ]
    end = board.null.score.value if board.null.score else None
    return picture(
        plots.ruler(marks, end),
        "Scores on one axis: " + "; ".join(f"{mark.label} {decimals(mark.value)}" for mark in marks),
        "Scores with 95% intervals over models and images, up to the null (shaded), the most there is to reach.",
    )
