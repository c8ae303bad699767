"""Pictures of a score: the ruler it lies on, the epsilons behind it, and what makes them large."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from local_eval.audit.diagnosis import Diagnosis
from local_eval.metric import MetricSpec
from local_eval.report.plots.style import MARKERS, colour, legend_below, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINE = 0.46  # inches a line of a ruler takes


@dataclass(frozen=True)
class Mark:
    """One line of a ruler: a value, with its interval where one is known, in the colour of a role and, unless a marker
    is given, with that of the role."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    role: str = "quiet"
    marker: str = ""


@styled
def ruler(marks: Sequence[Mark], end: float | None = None, digits: int = 4) -> "Figure":
    """Values on one axis from 0, a line each, label above and number beside it; the span up to `end` is shaded."""
    figure, axis = new_figure(0.35 + _LINE * len(marks))
    highest = max(end or 0.0, *(mark.high or mark.value for mark in marks), 1e-6)
    if end:
        axis.axvspan(0, end, color=colour("grid"), alpha=0.35, linewidth=0)
    for line, mark in enumerate(marks):
        y = -line
        axis.axhline(y, color=colour("grid"), linewidth=0.7, zorder=0)
        if mark.low is not None and mark.high is not None:
            axis.plot([mark.low, mark.high], [y, y], color=colour(mark.role), linewidth=3, solid_capstyle="butt")
        marker = mark.marker or MARKERS.get(mark.role, "o")
        axis.plot(mark.value, y, marker, color=colour(mark.role), markersize=8, clip_on=False, zorder=3)
        weight = "normal" if mark.role in ("quiet", "retrained") else "bold"
        axis.annotate(
            mark.label,
            (0, y),
            (2, 8),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            weight=weight,
            fontsize=10,
        )
        axis.annotate(
            f"{mark.value:.{digits}f}",
            (1, y),
            (0, 8),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            weight=weight,
            fontsize=10,
        )
    axis.set_ylim(-len(marks) + 0.6, 0.75)
    axis.set_xlim(-0.02 * highest, highest * 1.04)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    return figure


@styled
def epsilon_histogram(epsilon: np.ndarray, null_epsilon: np.ndarray, spec: MetricSpec, n_models: int) -> "Figure":
    """How many examples fall in each bin of the score, beside how many do for retrained against retrained models.

    Shares of the examples; the points that a bin gives stand above it; what lies beyond the last bin is one bar.
    """
    n_bins = spec.n_bins(n_models)
    figure, axis = new_figure(3.2)
    places = np.arange(n_bins + 1)
    for values, role, label in ((epsilon, "unlearned", "this method"), (null_epsilon, "retrained", "retrained")):
        shares = np.bincount(np.minimum((values / spec.bin_width).astype(int), n_bins), minlength=n_bins + 1)
        offset = -0.21 if role == "unlearned" else 0.21
        axis.bar(places + offset, shares / len(values), 0.4, color=colour(role), label=label)
    axis.axvspan(n_bins - 0.5, n_bins + 0.5, color=colour("grid"), alpha=0.5, linewidth=0, zorder=0)
    step = 1 if n_bins <= 9 else 2
    shown = [*range(0, n_bins - 1, step), n_bins]
    edges = [f"{place * spec.bin_width:g}" for place in shown[:-1]]
    axis.set_xticks(shown, [*edges, f"≥{n_bins * spec.bin_width:g}"])
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.set_xlim(-0.6, n_bins + 0.55)
    top = axis.secondary_xaxis("top")
    points = [*(f"{0.5**place:.2g}".lstrip("0") for place in range(4)), "0"]
    top.set_xticks([*range(min(4, n_bins)), n_bins], [*points[: min(4, n_bins)], "0"])
    top.tick_params(length=0)
    top.spines["top"].set_visible(False)
    axis.set_title("share of forgotten examples; points of a bin above it", fontsize=10)
    axis.set_xlabel("epsilon, from the left end of the bin")
    legend_below(figure, axis)
    return figure


@styled
def epsilon_sorted(epsilon: np.ndarray, bounds: np.ndarray, null_epsilon: np.ndarray, spec: MetricSpec) -> "Figure":
    """Every example's epsilon in order of size, what it is at least, and the epsilons of the null."""
    figure, axis = new_figure(3.2)
    order = np.argsort(epsilon, kind="stable")
    top = 1.15 * max(_below_cap(epsilon, spec), _below_cap(null_epsilon, spec), 1.0)
    share = (np.arange(len(epsilon)) + 0.5) / len(epsilon)
    axis.plot(
        share, np.minimum(np.sort(bounds), top), color=colour("unlearned"), linewidth=1.3, linestyle=":",
        label="this method, at least",
    )  # fmt: skip
    axis.plot(share, np.minimum(epsilon[order], top), color=colour("unlearned"), linewidth=2.2, label="this method")
    null_share = (np.arange(len(null_epsilon)) + 0.5) / len(null_epsilon)
    axis.plot(
        null_share, np.minimum(np.sort(null_epsilon), top), color=colour("retrained"), linewidth=2.2, linestyle="--",
        label="retrained",
    )  # fmt: skip
    axis.set(xlim=(0, 1), ylim=(0, top), xlabel="forgotten examples, the best forgotten first")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.set_title("epsilon", fontsize=10)
    axis.grid(axis="y")
    legend_below(figure, axis)
    return figure


def _below_cap(epsilon: np.ndarray, spec: MetricSpec) -> float:
    return float(np.max(epsilon[epsilon < spec.cap], initial=0.0))


@styled
def faults(diagnosis: Diagnosis) -> "Figure":
    """Each example by how far its mean is off and how wide its confidences spread; the box is what chance gives."""
    figure, axis = new_figure(3.2)
    chance_shift = 2 * np.sqrt(2 / diagnosis.n_models)
    chance_ratio = np.exp(2 * np.sqrt(1 / diagnosis.n_models))
    lowest = 0.02
    ratio = np.maximum(diagnosis.spread_ratio, lowest)
    reach = 1.1 * max(2.0, float(np.percentile(np.abs(diagnosis.shift), 99)))
    axis.fill_between(
        [-chance_shift, chance_shift], 1 / chance_ratio, chance_ratio, color=colour("retrained"), alpha=0.3, linewidth=0
    )
    axis.axhline(1, color=colour("retrained"), linewidth=1, linestyle="--")
    axis.axvline(0, color=colour("retrained"), linewidth=1, linestyle="--")
    axis.plot(
        np.clip(diagnosis.shift, -reach, reach),
        ratio,
        MARKERS["unlearned"],
        color=colour("unlearned"),
        markersize=3.2,
        alpha=0.55,
        markeredgewidth=0,
        rasterized=len(ratio) > 3000,
    )
    _log_axis(axis, min(0.25, float(ratio.min()) / 1.3), max(4.0, float(np.percentile(ratio, 99)) * 1.3))
    axis.set_xlim(-1.04 * reach, 1.04 * reach)
    axis.set_xlabel("mean off, in standard deviations   (right: too sure)")
    axis.set_title("spread between runs, as a multiple of the retrained models'", fontsize=10)
    return figure


def _log_axis(axis: "Axes", low: float, high: float) -> None:
    axis.set_yscale("log", base=2)
    axis.set_ylim(low, high)
    ticks = [tick for tick in (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, 32) if low <= tick <= high]
    axis.set_yticks(ticks, [f"{tick:g}" if tick >= 1 else f"1/{1 / tick:.0f}" for tick in ticks])
    axis.minorticks_off()
