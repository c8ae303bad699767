"""Rows of the evaluation as an aligned text table or a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kit.budget import format_duration
from local_eval.assess import Assessment
from local_eval.audit.intervals import decimals
from local_eval.distances import Distance
from local_eval.rows import NULL

if TYPE_CHECKING:  # torch is behind it, and arrays are assessed without
    from local_eval.evaluate import Row

HEADER = ("method", "score", "F", "RA ratio", "TA ratio", "forget acc", "mean eps", "per checkpoint")


def cells(row: Row) -> tuple[str, ...]:
    """A row's texts, one a column of HEADER."""
    return (
        row.name,
        decimals(row.score),
        decimals(row.forgetting_quality),
        f"{row.retain_ratio:.3f}",
        f"{row.test_ratio:.3f}",
        f"{row.forget_accuracy:.1%}",
        f"{row.mean_epsilon:.2f}",
        format_duration(row.seconds) if row.seconds else "-",
    )


def row_records(rows: Sequence[Row], assessments: Mapping[str, Assessment], attacks: str) -> list[dict[str, Any]]:
    """A dict a row, all with the same keys: its numbers, and the score's 95% interval where it was assessed."""
    records = []
    for row in rows:
        score = assessments[row.name].forms[attacks].score if row.name in assessments else None
        numbers = {name: value for name, value in vars(row).items() if name not in ("name", "epsilon")}
        low, high = (score.low, score.high) if score else (None, None)
        records.append({"method": row.name, **numbers, "score_low": low, "score_high": high})
    return records


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose first row is its header: the first column flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def markdown(table: Sequence[Sequence[str]]) -> list[str]:
    """The same table in Markdown."""
    rule = ["---"] + ["---:"] * (len(table[0]) - 1)
    return ["| " + " | ".join(line) + " |" for line in (table[0], rule, *table[1:])]


def table_of(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    return [HEADER, *(cells(row) for row in rows)]


def distance_table(rows: Sequence[Row], distances: Mapping[str, Distance]) -> list[tuple[str, ...]]:
    """Accuracies, distances to retraining on the forget set, and time as a share of retraining's.

    Where whole classes are forgotten the test accuracy of the others stands beside those of all and of the forgotten.
    """
    by_class = any(row.forgotten_test_accuracy is not None for row in rows)
    test = ("test acc", "all classes", "forgotten ones") if by_class else ("test acc",)
    table = [("method", "retain acc", *test, "activation dist", "JS", "KL", "similarity", "time / retraining")]
    for row in rows:
        distance = distances[row.name]
        test = (row.test_accuracy, *([row.whole_test_accuracy, row.forgotten_test_accuracy] if by_class else []))
        table.append(
            (
                row.name.split(" (")[0],
                *(f"{accuracy:.1%}" for accuracy in (row.retain_accuracy, *test)),
                f"{distance.activation:.3f}",
                f"{distance.js:.4f}",
                f"{distance.kl:.4f}",
                "-" if distance.similarity is None else f"{distance.similarity:.3f}",
                f"{row.time_ratio:.1%}" if row.time_ratio and row.name != NULL else "-",
            )
        )
    return table
