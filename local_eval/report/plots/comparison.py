"""Pictures of several methods beside each other: score against time, agreement of measures, one image's confidences."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from local_eval.report.plots.score import Mark
from local_eval.report.plots.style import MARKERS, colour, legend_below, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def score_seconds(marks: Sequence[Mark], seconds: Sequence[float], null: float, retraining_s: float | None) -> "Figure":
    """Score with its interval against the seconds of one checkpoint; the null and a retraining's time as lines.

    Labels stand beside the marks and have to be short, such as places on the leaderboard.
    """
    figure, axis = new_figure(3.8)
    times = np.asarray(seconds, float)
    for mark, time in zip(marks, times, strict=True):
        if mark.low is not None and mark.high is not None:
            axis.plot([time, time], [mark.low, mark.high], color=colour(mark.role), linewidth=2.4)
        axis.plot(time, mark.value, mark.marker or MARKERS["unlearned"], color=colour(mark.role), markersize=7)
    axis.axhline(null, color=colour("retrained"), linewidth=1.6, linestyle="--", label="null")
    if retraining_s:
        axis.axvline(retraining_s, color=colour("retrained"), linewidth=1.6, linestyle=":", label="one retraining")
    right, top = (1.15 * max(values, default=0.0) for values in ([*times, retraining_s or 0.0], _tops(marks, null)))
    axis.set(xlim=(0, right), ylim=(-0.04 * top, top))
    for mark, (x, y) in zip(marks, _label_places(marks, times, right, 1.04 * top), strict=True):
        axis.annotate(mark.label, (x, y), (9, 0), textcoords="offset points", va="center", weight="bold")
    axis.set_xlabel("seconds a checkpoint")
    axis.set_title("score", fontsize=10)
    axis.grid()
    legend_below(figure, axis)
    return figure


def _tops(marks: Sequence[Mark], null: float) -> list[float]:
    return [null, *(mark.high or mark.value for mark in marks)]


def _label_places(marks: Sequence[Mark], times: np.ndarray, right: float, height: float) -> list[tuple[float, float]]:
    """Where each label stands: beside its mark, moved up where it would lie on one placed before."""
    line, character = 0.07 * height, 0.03 * right
    placed: list[tuple[float, float]] = []
    for mark, time in zip(marks, times, strict=True):
        y = mark.value
        while any(abs(y - other) < line and abs(time - x) < character * (len(mark.label) + 1) for x, other in placed):
            y += line
        placed.append((float(time), y))
    return placed


@styled
def agreement(measures: Mapping[str, float]) -> "Figure":
    """Rank correlation of each measure with the score over the methods, -1 to 1; NaN leaves a line empty."""
    figure, axis = new_figure(0.6 + 0.27 * len(measures))
    lines = -np.arange(len(measures), dtype=float)
    values = np.array(list(measures.values()), float)
    axis.hlines(lines, 0, values, color=colour("quiet"), linewidth=2)
    axis.plot(values, lines, "o", color=colour("ink"), markersize=6, clip_on=False)
    axis.axvline(0, color=colour("quiet"), linewidth=0.8)
    axis.set_yticks(lines, list(measures))
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set(xlim=(-1.05, 1.05), ylim=(-len(measures) + 0.4, 0.6))
    axis.grid(axis="x")
    return figure


@styled
def strips(
    samples: Mapping[str, np.ndarray], style_of: Mapping[str, tuple[str, str]], notes: Mapping[str, str]
) -> "Figure":
    """One example's confidences under several pools, a line each, (n_models,) dots; the mean as a bar, a note at the
    end of the line. style_of: role and marker of each."""
    figure, axis = new_figure(0.4 + 0.36 * len(samples), width=4.4)
    rng = np.random.default_rng(0)
    for line, (name, values) in enumerate(samples.items()):
        role, marker = style_of[name]
        scatter = rng.uniform(-0.2, 0.2, len(values))
        axis.plot(values, -line + scatter, marker, color=colour(role), markersize=2.8, alpha=0.5, markeredgewidth=0)
        axis.plot([np.mean(values)] * 2, [-line - 0.3, -line + 0.3], color=colour(role), linewidth=2.4)
        axis.annotate(
            notes.get(name, ""), (1, -line), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", fontsize=10,
        )  # fmt: skip
    axis.set_yticks([-line for line in range(len(samples))], [_in_two_lines(name) for name in samples], fontsize=9)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(-len(samples) + 0.45, 0.55)
    axis.spines["left"].set_visible(False)
    axis.locator_params(axis="x", nbins=5)
    axis.grid(axis="x")
    return figure


def _in_two_lines(name: str, width: int = 20) -> str:
    """A method's name and its hyper-parameters, each shortened in the middle where it is too long."""
    lines = name.split(" ", 1)
    return "\n".join(line if len(line) <= width else f"{line[: width - 9]}…{line[-8:]}" for line in lines)
