"""A sweep as lines for the terminal, as Markdown and as plain values for JSON."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from kit.budget import format_duration
from local_eval.distances import Distance
from local_eval.evaluate import NULL, Row
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
            mark = "best" if outcome is best else ""
            table.append((*values, *_cells(sweep, outcome.row, outcome.distance, f"{outcome.gap:.2%}"), mark))
    blank = ("",) * (len(sweep.swept) - 1)
    for row, distance in reversed(sweep.beside):
        table.append((row.name.split(" (")[0], *blank, *_cells(sweep, row, distance, "-"), ""))
    return table


def _cells(sweep: Sweep, row: Row, distance: Distance, gap: str) -> tuple[str, ...]:
    accuracies = [getattr(row, f"{part}_accuracy") for part in (*ACCURACIES, "forgotten_test")]
    if row.name == NULL:  # that row's own accuracies are of half the models
        accuracies = [sweep.retrained.get(part) for part in (*ACCURACIES, "forgotten_test")]
    return (
        *((f"{row.score:.4f}", f"{row.forgetting_quality:.4f}") if sweep.scored else ()),
        *(f"{accuracy:.1%}" for accuracy in accuracies if accuracy is not None),
        gap,
        f"{distance.activation:.3f}",
        f"{distance.js:.4f}",
        format_duration(row.seconds) if row.seconds else "-",
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
