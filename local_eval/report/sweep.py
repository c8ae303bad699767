"""A sweep as lines for the terminal, as Markdown and as plain values for JSON."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from kit.budget import format_duration
from local_eval.audit.intervals import decimals
from local_eval.distances import Distance
from local_eval.evaluate import Row
from local_eval.sweep import ACCURACIES, Outcome, Sweep


def sweep_table(sweep: Sweep, best: Outcome | None) -> list[tuple[str, ...]]:
    """A line for each point, the best marked, then the retrained models and doing nothing. Header first."""
    by_class = "forgotten_test" in sweep.retrained
    header = (
        *sweep.swept,
        *(("score", "F") if sweep.scored else ()),
        *(f"{part} acc" for part in ACCURACIES),
        *(("forgotten ones",) if by_class else ()),
        "gap",
        "activation dist",
        "JS",
        "per checkpoint",
        "",
    )
    table = [header]
    for outcome in sweep.outcomes:
        values = tuple(str(value) for value in outcome.point.values.values())
        if outcome.row is None:
            table.append((*values, *("-" for _ in header[len(values) : -1]), "no model"))
        else:
            cells = _cells(sweep, _accuracies(outcome.row), outcome.row, outcome.distance, f"{outcome.gap:.2%}")
            table.append((*values, *cells, "best" if outcome is best else ""))
    blank = ("",) * (len(sweep.swept) - 1)
    nothing, *null = sweep.beside
    table.append(("retrain", *blank, *_cells(sweep, sweep.retrained, *(null[0] if null else ())), ""))
    table.append((nothing[0].name, *blank, *_cells(sweep, _accuracies(nothing[0]), *nothing), ""))
    return table


def _accuracies(row: Row) -> dict[str, float | None]:
    return {part: getattr(row, f"{part}_accuracy") for part in (*ACCURACIES, "forgotten_test")}


def _cells(
    sweep: Sweep,
    accuracies: Mapping[str, float | None],
    row: Row | None = None,
    distance: Distance | None = None,
    gap: str = "-",
) -> tuple[str, ...]:
    """What follows the swept values; from eight models on, when the score is shown, there is a row for each line."""
    shown = (accuracies.get(part) for part in (*ACCURACIES, "forgotten_test"))
    return (
        *((decimals(row.score), decimals(row.forgetting_quality)) if sweep.scored else ()),
        *(f"{accuracy:.1%}" for accuracy in shown if accuracy is not None),
        gap,
        f"{distance.activation:.3f}" if distance else "-",
        f"{distance.js:.4f}" if distance else "-",
        format_duration(row.seconds) if row and row.seconds else "-",
    )


def sweep_facts(sweep: Sweep, best: Outcome | None) -> dict[str, Any]:
    """Everything the sweep found, as plain JSON values; epsilons of single examples are left to the pools."""
    return {
        "method": sweep.method,
        "n_models": sweep.n_models,
        "swept": {name: list(values) for name, values in sweep.swept.items()},
        "points": [_facts(outcome) for outcome in sweep.outcomes],
        "best": _facts(best) if best else None,
        "retrained_accuracy": dict(sweep.retrained),
        "beside": [{**_row_facts(row), "distance": asdict(distance)} for row, distance in sweep.beside],
    }


def _facts(outcome: Outcome) -> dict[str, Any]:
    facts = {
        "values": dict(outcome.point.values),
        "settings": list(outcome.point.settings),
        "pool": str(outcome.pool.folder),
        "broken": outcome.broken,
    }
    if outcome.row is not None:
        facts |= _row_facts(outcome.row)
        facts |= {"gap": outcome.gap, "spread": dict(outcome.spread), "distance": asdict(outcome.distance)}
    return facts


def _row_facts(row: Row) -> Mapping[str, Any]:
    return {name: value for name, value in asdict(row).items() if name != "epsilon"}
