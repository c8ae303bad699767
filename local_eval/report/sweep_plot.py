"""The picture of a sweep: accuracies, and the score, against the hyper-parameter."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from local_eval.evaluate import NULL
from local_eval.report.plots.style import MARKERS, colour, styled
from local_eval.sweep import Outcome, Sweep

LINES = {  # part -> label, colour, marker
    "retain": ("retain", colour("retain"), MARKERS["retain"]),
    "forget": ("forget", colour("forget"), MARKERS["forget"]),
    "test": ("test", colour("test"), MARKERS["test"]),
    "forgotten_test": ("test, forgotten classes", "#CC79A7", "v"),
}
SCORE = colour("ink")
BEST = "#E69F00"
MOST_COLUMNS = 4
_ROOM = 0.08  # of the axis: what a tick's label takes


@styled
def plot_sweep(sweep: Sweep, best: Outcome | None, path: Path) -> Path:
    """Write the picture as PNG.

    The hyper-parameter with the most values runs along the axis; every combination of the others has its own column.
    Marks are means over models, bars their standard deviations; broken lines are the retrained models.
    """
    from matplotlib.figure import Figure  # here: importing it takes a second

    along = max(sweep.swept, key=lambda name: len(sweep.swept[name]))
    others = {name: values for name, values in sweep.swept.items() if name != along}
    columns = [dict(zip(others, values, strict=True)) for values in product(*others.values())]
    n_columns, n_parts = min(len(columns), MOST_COLUMNS), 2 if sweep.scored else 1
    n_rows = math.ceil(len(columns) / n_columns)
    width = 6.4 if n_columns == 1 else 3.6 * n_columns
    figure = Figure(figsize=(width, n_rows * (4.6 if sweep.scored else 3.4) + 0.5), layout="constrained")
    heights = [part for _ in range(n_rows) for part in (2.4, 1.0)[:n_parts]]
    grid = figure.subplots(n_rows * n_parts, n_columns, squeeze=False, height_ratios=heights, sharex=True, sharey="row")
    for cell, column in enumerate(columns):
        row, place = divmod(cell, n_columns)
        chosen = [o for o in sweep.outcomes if all(o.point.values[name] == v for name, v in column.items())]
        x = _positions(sweep.swept[along])
        axes = [grid[row * n_parts + part][place] for part in range(n_parts)]
        _accuracies(axes[0], sweep, chosen, x, along)
        if sweep.scored:
            _scores(axes[1], sweep, chosen, x, along)
        for axis in axes:
            _mark(axis, chosen, best, x, along)
            _dress(axis, sweep.swept[along], x)
        axes[0].set_title(", ".join(f"{name} = {value}" for name, value in column.items()), fontsize="medium")
        axes[-1].set_xlabel(along)
        axes[-1].tick_params(labelbottom=True)
        if place == 0:
            axes[0].set_ylabel("accuracy")
            if sweep.scored:
                axes[1].set_ylabel("score")
    for cell in range(len(columns), n_rows * n_columns):
        for part in range(n_parts):
            grid[cell // n_columns * n_parts + part][cell % n_columns].set_visible(False)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize="small")
    figure.savefig(path, dpi=130)
    return path


def _positions(values: Sequence[Any]) -> Mapping[Any, float]:
    """Where each value lies: by size where that leaves room between them, in decades if they span one; else at equal
    distances, numbers in order."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    order = sorted(values) if numbers else list(values)
    if numbers and len(order) > 1:
        decades = order[0] > 0 and order[-1] / order[0] >= 10
        places = [math.log10(value) if decades else float(value) for value in order]
        narrowest = min(right - left for left, right in pairwise(places))
        if narrowest > _ROOM * (places[-1] - places[0]):
            return dict(zip(order, places, strict=True))
    return {value: float(place) for place, value in enumerate(order)}


def _series(chosen: Sequence[Outcome], x: Mapping[Any, float], along: str) -> list[tuple[float, Outcome]]:
    usable = [(x[o.point.values[along]], o) for o in chosen if o.row is not None]
    return sorted(usable, key=lambda pair: pair[0])


def _accuracies(axis: Any, sweep: Sweep, chosen: Sequence[Outcome], x: Mapping[Any, float], along: str) -> None:
    series = _series(chosen, x, along)
    for part, (label, hue, marker) in LINES.items():
        if part not in sweep.retrained:
            continue
        axis.axhline(sweep.retrained[part], color=hue, linestyle="--", linewidth=1, alpha=0.8)
        means = [getattr(o.row, f"{part}_accuracy") for _, o in series]
        spreads = [o.spread[part] for _, o in series]
        axis.errorbar(
            [at for at, _ in series],
            means,
            spreads,
            color=hue,
            marker=marker,
            markersize=5,
            linewidth=1.6,
            elinewidth=1,
            label=label,
        )
    axis.plot([], [], color=colour("quiet"), linestyle="--", linewidth=1, label="retrained")
    axis.plot([], [], color=BEST, linewidth=6, alpha=0.35, label="best")
    axis.set_ylim(-0.03, 1.03)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _scores(axis: Any, sweep: Sweep, chosen: Sequence[Outcome], x: Mapping[Any, float], along: str) -> None:
    series = _series(chosen, x, along)
    for row, _ in sweep.beside:
        if row.name == NULL:
            axis.axhline(row.score, color=SCORE, linestyle="--", linewidth=1, alpha=0.8)
    scores = [o.row.score for _, o in series]
    axis.plot([at for at, _ in series], scores, color=SCORE, marker="D", markersize=4, clip_on=False)
    axis.set_ylim(bottom=0)


def _mark(axis: Any, chosen: Sequence[Outcome], best: Outcome | None, x: Mapping[Any, float], along: str) -> None:
    """The best point, and those that gave no model."""
    for outcome in chosen:
        at = x[outcome.point.values[along]]
        if outcome is best:
            axis.axvline(at, color=BEST, linewidth=6, alpha=0.35, zorder=0)
        if outcome.row is None:
            axis.axvline(at, color="0.75", linewidth=1, linestyle=":")
            axis.annotate(
                "no model", (at, 0.5), xycoords=("data", "axes fraction"), rotation=90, va="center", ha="right",
                color="0.4", fontsize="small",
            )  # fmt: skip


def _dress(axis: Any, values: Sequence[Any], x: Mapping[Any, float]) -> None:
    axis.set_xticks([x[value] for value in values], [f"{v:g}" if isinstance(v, float) else str(v) for v in values])
    axis.grid(axis="y", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.06)
