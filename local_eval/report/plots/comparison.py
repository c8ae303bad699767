"""Pictures of several methods beside each other: score against time, agreement of measures, one image's confidences."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from local_eval.report.plots.score import Mark
from local_eval.report.plots.style import MARKERS, colour, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def score_seconds(marks: Sequence[Mark], seconds: Sequence[float], null: float, retraining_s: float | None) -> "Figure":
    """Score with its interval against the seconds of one checkpoint; the null and a retraining's time as lines."""
    figure, axis = new_figure(3.8)
    times = np.asarray(seconds, float)
    for mark, time in zip(marks, times, strict=True):
        if mark.low is not None and mark.high is not None:
            axis.plot([time, time], [mark.low, mark.high], color=colour(mark.role), linewidth=2.4)
        axis.plot(time, mark.value, MARKERS["unlearned"], color=colour(mark.role), markersize=7)
    axis.axhline(null, color=colour("retrained"), linewidth=1.4, linestyle="--")
    axis.annotate(
        "null: a perfect unlearner", (0, null), (4, 4), xycoords=("axes fraction", "data"),
        textcoords="offset points", color=colour("retrained"), fontsize=10,
    )  # fmt: skip
    right = 1.15 * max(times.max(), retraining_s or 0.0)
    if retraining_s:
        axis.axvline(retraining_s, color=colour("retrained"), linewidth=1.4, linestyle="--")
        axis.annotate(
            "one retraining", (retraining_s, 0.9), (-4, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="right", color=colour("retrained"), fontsize=10,
        )  # fmt: skip
    axis.set_xlim(0, right)
    axis.set_ylim(-0.03 * null, 1.15 * max(null, *(mark.high or mark.value for mark in marks)))
    for mark, (x, y, side) in zip(marks, _label_places(marks, times, right, axis.get_ylim()), strict=True):
        axis.annotate(
            mark.label, (x, y), (9 if side == "left" else -9, 0), textcoords="offset points", ha=side, va="center",
            fontsize=10,
        )  # fmt: skip
    axis.set_xlabel("seconds a checkpoint")
    axis.set_title("score", fontsize=10)
    axis.grid()
    return figure


def _label_places(
    marks: Sequence[Mark], times: np.ndarray, right: float, limits: tuple[float, float]
) -> list[tuple[float, float, str]]:
    """Where each label stands, as (x, y, horizontal alignment): beside its mark, moved up where it would lie on one
    placed before."""
    height, character = 0.075 * (limits[1] - limits[0]), 0.02 * right
    placed: list[tuple[float, float, str]] = []
    spans: list[tuple[float, float, float]] = []
    for mark, time in zip(marks, times, strict=True):
        side, width = ("left" if time < 0.55 * right else "right"), character * (len(mark.label) + 2)
        low, high = (time, time + width) if side == "left" else (time - width, time)
        y = mark.value
        while any(abs(y - other) < height and low < end and start < high for start, end, other in spans):
            y += height
        spans.append((low, high, y))
        placed.append((float(time), y, side))
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
def strips(samples: Mapping[str, np.ndarray], role_of: Mapping[str, str]) -> "Figure":
    """One example's confidences under several pools, a line each, (n_models,) dots; the mean as a bar."""
    figure, axis = new_figure(0.35 + 0.3 * len(samples), width=3.6)
    rng = np.random.default_rng(0)
    for line, (name, values) in enumerate(samples.items()):
        role = role_of[name]
        scatter = rng.uniform(-0.2, 0.2, len(values))
        axis.plot(
            values, -line + scatter, MARKERS[role], color=colour(role), markersize=2.8, alpha=0.5, markeredgewidth=0
        )
        axis.plot([np.mean(values)] * 2, [-line - 0.3, -line + 0.3], color=colour(role), linewidth=2.4)
    labels = [name if len(name) <= 20 else name[:19] + "…" for name in samples]
    axis.set_yticks([-line for line in range(len(samples))], labels)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(-len(samples) + 0.45, 0.55)
    axis.spines["left"].set_visible(False)
    axis.locator_params(axis="x", nbins=5)
    axis.grid(axis="x")
    return figure
