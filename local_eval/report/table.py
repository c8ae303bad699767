"""Rows of the evaluation as an aligned text table or a Markdown table."""

from collections.abc import Sequence

from kit.budget import format_duration
from local_eval.evaluate import Row

HEADER = ("method", "score", "F", "RA ratio", "TA ratio", "forget acc", "mean eps", "per checkpoint")


def cells(row: Row) -> tuple[str, ...]:
    """A row's texts, one a column of HEADER."""
    return (
        row.name,
        f"{row.score:.4f}",
        f"{row.forgetting_quality:.4f}",
        f"{row.retain_ratio:.3f}",
        f"{row.test_ratio:.3f}",
        f"{row.forget_accuracy:.1%}",
        f"{row.mean_epsilon:.2f}",
        format_duration(row.seconds) if row.seconds else "-",
    )


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
