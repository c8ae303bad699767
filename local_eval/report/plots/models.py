"""Pictures of the models themselves: accuracies over models and classes, and the time they took."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from local_eval.report.plots.style import MARKERS, colour, legend_below, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = {"unlearned": "this method", "retrained": "retrained"}


@styled
def accuracies(
    unlearned: Mapping[str, np.ndarray], retrained: Mapping[str, np.ndarray], original: Mapping[str, float]
) -> "Figure":
    """Accuracy of every model on each part, (n_models,) each; bars at the means, the original model as a cross."""
    figure, axis = new_figure(0.9 + 0.95 * len(unlearned))
    rng = np.random.default_rng(0)
    for line, part in enumerate(unlearned):
        for values, role, y in (
            (unlearned[part], "unlearned", -line + 0.2),
            (retrained[part], "retrained", -line - 0.2),
        ):
            axis.plot(
                values, y + rng.uniform(-0.12, 0.12, len(values)), MARKERS[role], color=colour(role), markersize=3.4,
                alpha=0.45, markeredgewidth=0, label=_NAMES[role] if line == 0 else None,
            )  # fmt: skip
            axis.plot([values.mean()] * 2, [y - 0.18, y + 0.18], color=colour(role), linewidth=2.6)
        if part in original:
            axis.plot(
                original[part], -line, "x", color=colour("ink"), markersize=8, markeredgewidth=2,
                label="original" if line == 0 else None,
            )  # fmt: skip
    axis.set_yticks([-line for line in range(len(unlearned))], [part.replace("_", "\n") for part in unlearned])
    for text, part in zip(axis.get_yticklabels(), unlearned, strict=True):
        text.set(color=colour("test" if part.endswith("test") else part), weight="bold")
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(-len(unlearned) + 0.45, 0.55)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.locator_params(axis="x", nbins=6)
    axis.grid(axis="x")
    axis.set_title("accuracy", fontsize=10)
    legend = legend_below(figure, axis)
    for handle in legend.legend_handles[:2]:
        handle.set(markersize=6, alpha=1)
    return figure


@styled
def class_accuracies(names: Sequence[str], unlearned: np.ndarray, retrained: np.ndarray, title: str = "") -> "Figure":
    """Accuracy on each class, (n_models, n_classes): means, bars of one standard deviation over models."""
    figure, axis = new_figure(0.9 + 0.3 * len(names))
    lines = -np.arange(len(names), dtype=float)
    for values, role, offset in ((retrained, "retrained", -0.13), (unlearned, "unlearned", 0.13)):
        mean, sd = values.mean(axis=0), values.std(axis=0, ddof=1)
        axis.errorbar(
            mean, lines + offset, xerr=sd, fmt=MARKERS[role], color=colour(role), markersize=4.5, linewidth=1.4,
            label=_NAMES[role],
        )  # fmt: skip
    axis.set_yticks(lines, [name if len(name) <= 14 else name[:13] + "…" for name in names])
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(-len(names) + 0.4, 0.6)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.locator_params(axis="x", nbins=6)
    axis.grid(axis="x")
    axis.set_title(title, fontsize=10)
    legend_below(figure, axis)
    return figure


@styled
def checkpoint_seconds(seconds: np.ndarray, retraining_s: float | None, limit_share: float) -> "Figure":
    """Seconds of each checkpoint in order, (n_models,); the time of one retraining and the share of it allowed."""
    figure, axis = new_figure(2.6)
    axis.bar(np.arange(len(seconds)), seconds, 0.8, color=colour("unlearned"), alpha=0.8, linewidth=0)
    if retraining_s:
        lines = (retraining_s, "--", "one retraining"), (limit_share * retraining_s, ":", f"{limit_share:.0%} of it")
        for value, line, label in lines:
            axis.axhline(value, color=colour("retrained"), linewidth=2, linestyle=line, label=label)
        legend_below(figure, axis)
    axis.set_ylim(0, 1.08 * max(seconds.max(), retraining_s or 0.0))
    axis.set_xlim(-0.8, len(seconds) - 0.2)
    axis.locator_params(axis="x", integer=True)
    axis.set_title("seconds", fontsize=10)
    axis.set_xlabel("checkpoint")
    return figure


@styled
def timeline(
    seconds: np.ndarray, n_checkpoints: int, limit_s: float, plans: Sequence[float] = (), own_limit_s: float = np.inf
) -> "Figure":
    """Checkpoints done against computing time of one process, and its projection to n_checkpoints.

    limit_s: the competition's; own_limit_s: the run's own, drawn where it has one; plans: when a plan was made or
    revised, in the same seconds.
    """
    figure, axis = new_figure(2.9)
    done = np.arange(1, len(seconds) + 1)
    elapsed = np.cumsum(seconds)
    end = elapsed[-1] / len(seconds) * n_checkpoints
    unit_s, unit = _unit(max(end, limit_s))
    axis.plot(
        [elapsed[-1] / unit_s, end / unit_s], [len(seconds), n_checkpoints], color=colour("unlearned"), linewidth=1.6,
        linestyle=":",
    )  # fmt: skip
    axis.plot([0, *elapsed / unit_s], [0, *done], color=colour("unlearned"), linewidth=2.6)
    axis.plot(end / unit_s, n_checkpoints, MARKERS["unlearned"], color=colour("unlearned"), markersize=7)
    for value, label in ((limit_s, "limit on Kaggle"), (own_limit_s, "limit of this run")):
        if np.isfinite(value) and value <= max(end, limit_s):
            _limit(axis, value / unit_s, label, value < 0.5 * max(end, limit_s))
    for moment in plans:
        axis.plot(moment / unit_s, 0, "|", color=colour("ink"), markersize=12, clip_on=False)
    axis.set_ylim(0, 1.12 * n_checkpoints)
    axis.set_xlim(0, 1.06 * max(end, limit_s) / unit_s)
    axis.set_title("checkpoints", fontsize=10)
    axis.set_xlabel(f"{unit} of computing, one process")
    axis.grid(axis="y")
    return figure


def _limit(axis: "Axes", at: float, label: str, to_the_right: bool) -> None:
    axis.axvline(at, color=colour("forget"), linewidth=1.6, linestyle="--")
    axis.annotate(
        label, (at, 0.08), (4 if to_the_right else -4, 0), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="left" if to_the_right else "right", color=colour("forget"), fontsize=10,
    )  # fmt: skip


def _unit(longest_s: float) -> tuple[float, str]:
    return (3600.0, "hours") if longest_s >= 7200 else (60.0, "minutes") if longest_s >= 120 else (1.0, "seconds")
