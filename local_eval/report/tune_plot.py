"""The picture of a search: every trial against each hyper-parameter that was searched."""

import math
from collections.abc import Sequence
from pathlib import Path

from kit.methods import with_settings
from local_eval.report.plots.style import colour, styled
from local_eval.tune import Result, Search

BEST = "#E69F00"
MOST_COLUMNS = 3


@styled
def plot_search(plan: Search, found: Sequence[Result], chosen: Result | None, path: Path) -> Path:
    """Write the picture as PNG: a panel a hyper-parameter, larger marks for more models."""
    from matplotlib.figure import Figure  # here: importing it takes a second

    n_columns = min(MOST_COLUMNS, len(plan.ranges))
    n_rows = math.ceil(len(plan.ranges) / n_columns)
    figure = Figure(figsize=(max(5.3, 3.6 * n_columns), 3.1 * n_rows + 0.4), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True).flat
    for axes, (name, span) in zip(panels, plan.ranges.items(), strict=False):
        places = None
        if isinstance(span, list):
            read = (with_settings(plan.method, [f"{name}={choice}"]).settings[name] for choice in span)
            places = {str(value): at for at, value in enumerate(read)}

        def x_of(result: Result, name: str = name, places: dict[str, int] | None = places) -> float:
            value = with_settings(plan.method, result.settings).settings[name]
            return value if places is None else places.get(str(value), math.nan)

        for rung, size in zip(plan.rungs, (14, 34, 70), strict=False):
            rows = [result for result in found if result.n_models == rung and not result.broken]
            x, y = [x_of(r) for r in rows], [r.value for r in rows]
            axes.scatter(x, y, s=size, color=colour("unlearned"), alpha=0.55, label=f"{rung} models", linewidths=0)
        standing = [r for r in found if r.trial == 0 and not r.broken]
        if standing:
            axes.axhline(standing[-1].value, color=colour("quiet"), linestyle="--", linewidth=1, label="as it stands")
        if chosen is not None:
            axes.scatter([x_of(chosen)], [chosen.value], s=130, facecolors="none", edgecolors=BEST, linewidths=2,
                         label="best", zorder=3)  # fmt: skip
        if places is not None:
            axes.set_xticks(list(places.values()), [str(choice) for choice in span])
        elif span[0] > 0 and span[1] >= 10 * span[0]:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.set_xlabel(name)
    for axes in list(panels):  # what is left of the grid
        axes.set_visible(False)
    first = figure.axes[0]
    for axes in figure.axes[::n_columns]:
        axes.set_ylabel("score expected at 512")
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize="small")
    figure.savefig(path, dpi=130)
    return path
