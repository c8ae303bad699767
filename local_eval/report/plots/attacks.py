"""Pictures of the attacks: the two distributions of an example, the trade-off of errors, epsilon against delta."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from local_eval.metric import WindowAttack
from local_eval.report.plots.style import MARKERS, colour, legend_below, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def confidences(unlearned: np.ndarray, retrained: np.ndarray, attack: WindowAttack | None) -> "Figure":
    """One example's confidences under the unlearned and the retrained models, (n_models,) each, and the window or
    threshold that tells them apart best."""
    figure, axis = new_figure(1.55, width=3.6)
    low, high = (f(f(unlearned), f(retrained)) for f in (min, max))
    margin = 0.06 * (high - low) or 1.0
    edges = np.linspace(low, high if high > low else low + 1, 25)
    if attack is not None:
        ends = np.clip([attack.lo, attack.hi], low - margin, high + margin)
        inside = "unlearned" if attack.inside_is_unlearned else "retrained"
        axis.axvspan(*ends, color=colour(inside), alpha=0.16, linewidth=0)
        for end in (attack.lo, attack.hi):
            if np.isfinite(end):
                axis.axvline(end, color=colour(inside), linewidth=1, linestyle=":")
    for values, role in ((retrained, "retrained"), (unlearned, "unlearned")):
        weights = np.full(len(values), 1 / len(values))
        axis.hist(values, edges, weights=weights, color=colour(role), alpha=0.45, histtype="stepfilled")
        axis.hist(values, edges, weights=weights, color=colour(role), histtype="step", linewidth=1.4)
    axis.set_xlim(low - margin, high + margin)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.locator_params(axis="x", nbins=6)
    return figure


@styled
def tradeoff(unlearned: np.ndarray, null: np.ndarray, lines: Sequence[float] = (1, 2, 3), n_thin: int = 40) -> "Figure":
    """The least share of unlearned models missed at each share of retrained models taken for unlearned.

    unlearned, null: (n_false_positives + 1, n_examples), see `local_eval.audit.tradeoff`; of the first, n_thin
    examples are drawn thin. Bold: medians over examples. lines: epsilons whose limit is drawn (delta = 0).
    """
    figure, axis = new_figure(3.9)
    rates = np.linspace(0, 1, len(unlearned))
    for example in np.linspace(0, unlearned.shape[1] - 1, min(n_thin, unlearned.shape[1])).astype(int):
        axis.step(rates, unlearned[:, example], where="post", color=colour("unlearned"), linewidth=0.6, alpha=0.25)
    axis.step(
        rates, np.median(unlearned, axis=1), where="post", color=colour("unlearned"), linewidth=2.4, label="this method"
    )
    axis.step(
        np.linspace(0, 1, len(null)), np.median(null, axis=1), where="post", color=colour("retrained"), linewidth=2.4,
        linestyle="--", label="retrained",
    )  # fmt: skip
    for epsilon in lines:
        corner = 1 / (1 + np.exp(epsilon))
        axis.plot([0, corner, 1], [1, corner, 0], color=colour("quiet"), linewidth=0.9, linestyle=":")
        behind = {"facecolor": colour("paper"), "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
        label = {"textcoords": "offset points", "color": colour("quiet"), "fontsize": 10, "bbox": behind, "zorder": 5}
        axis.annotate(f"ε = {epsilon:g}", (corner, corner), (3, 3), **label)
    axis.plot([0, 1], [1, 0], color=colour("quiet"), linewidth=0.9, linestyle=":")
    axis.set(xlim=(-0.01, 1), ylim=(-0.01, 1.01), xlabel="false positive rate: retrained taken for unlearned")
    axis.set_title("false negative rate: unlearned taken for retrained", fontsize=10)
    legend_below(figure, axis)
    return figure


@styled
def epsilon_delta(deltas: np.ndarray, unlearned: np.ndarray, null: np.ndarray, top: float) -> "Figure":
    """Median epsilon at each delta with the middle 80% of the examples, (n_deltas, n_examples) each; cut at `top`."""
    figure, axis = new_figure(3.9)
    styles: Mapping[str, tuple[np.ndarray, str, str]] = {
        "unlearned": (unlearned, "-", "this method"),
        "retrained": (null, "--", "retrained"),
    }
    for role, (values, line, label) in styles.items():
        low, middle, high = np.minimum(np.percentile(values, (10, 50, 90), axis=1), top)
        axis.fill_between(deltas, low, high, color=colour(role), alpha=0.18, linewidth=0)
        axis.plot(deltas, middle, color=colour(role), linewidth=2.4, linestyle=line, label=label)
        axis.plot(deltas[:1], middle[:1], MARKERS[role], color=colour(role), markersize=6)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_ylim(0, 1.04 * top)
    axis.set_xlim(deltas[0] * 0.9, deltas[-1])
    axis.set_xlabel("delta")
    axis.set_title(f"epsilon (cut at {top:g})", fontsize=10)
    axis.grid(axis="y")
    legend_below(figure, axis)
    return figure
