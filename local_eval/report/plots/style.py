"""One look for every picture: a colour and a marker per role, on light and dark paper, told apart by everyone.

A role keeps its colour in every picture of the project. The hues of the parts are Okabe and Ito's; those of the models
were searched for so that all five stay apart under protanopia, deuteranopia and tritanopia, with a contrast of 3 and
more to the paper; tests hold that. Markers differ too.
"""

import hashlib
import io
import re
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:  # importing matplotlib takes a second
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

ROLES = ("retain", "forget", "test", "unlearned", "retrained")
LIGHT = {
    "retain": "#0072b2",
    "forget": "#d55e00",
    "test": "#009e73",
    "unlearned": "#8b2fe6",
    "retrained": "#6b5200",
    "ink": "#1f2328",
    "quiet": "#59636e",
    "grid": "#d8dee4",
    "paper": "#ffffff",
}
DARK = {
    "retain": "#56b4e9",
    "forget": "#ff8a50",
    "test": "#3dd6a5",
    "unlearned": "#a56bff",
    "retrained": "#f6e445",
    "ink": "#e8edf2",
    "quiet": "#9aa5b1",
    "grid": "#343c46",
    "paper": "#14181d",
}
MARKERS = {"retain": "o", "forget": "s", "test": "^", "unlearned": "D", "retrained": "o"}
# Methods beside each other, in pictures that show no part of the data: the parts' hues, with markers of their own.
METHODS = (("unlearned", "D"), ("retain", "s"), ("forget", "^"), ("test", "v"), ("unlearned", "X"), ("retain", "P"))
METHODS += (("forget", "*"), ("test", "p"))
WIDTH = 5.3  # inches: at a phone's width the text of a picture so wide is still read without zooming

_RC = {
    "font.size": 11,
    "axes.edgecolor": LIGHT["quiet"],
    "axes.labelcolor": LIGHT["quiet"],
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlecolor": LIGHT["quiet"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": LIGHT["quiet"],
    "ytick.color": LIGHT["quiet"],
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "text.color": LIGHT["ink"],
    "text.parse_math": False,  # a class or a method may be called $x$
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's own font
    "svg.hashsalt": "report",
}

P = ParamSpec("P")
Result = TypeVar("Result")


def styled(plot: Callable[P, Result]) -> Callable[P, Result]:
    """The function drawn in the project's style; what else uses matplotlib keeps its own."""

    @wraps(plot)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Result:
        import matplotlib

        with matplotlib.rc_context(_RC):
            return plot(*args, **kwargs)

    return inside


def new_figure(height: float, width: float = WIDTH, **subplots: object) -> "tuple[Figure, Axes]":
    """A figure of this size in inches and its axes, as `Figure.subplots` gives them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.subplots(**subplots)
    for axis in getattr(axes, "flat", [axes]):
        axis.set_facecolor("none")
        axis.set_axisbelow(True)
    return figure, axes


def legend_below(figure: "Figure", axis: "Axes") -> "Legend":
    """The key of an axis under the figure, where it covers nothing."""
    handles, labels = axis.get_legend_handles_labels()
    return figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), columnspacing=1.4, handletextpad=0.5
    )


def method_style(place: int) -> tuple[str, str]:
    """Role of the colour and marker of the method of this place, 0 on; told apart up to eight."""
    return METHODS[place % len(METHODS)]


def colour(role: str) -> str:
    return LIGHT[role]


@styled
def svg(figure: "Figure", label: str) -> str:
    """The figure as SVG to be put inline: colours follow the page's theme, `label` is read aloud.

    Colours become CSS variables (--retain, --ink, ...; see `theme_css`), fonts the page's. Ids begin with a hash of the
    picture, so that the markers and clips of one are never taken for another's; the same figure gives the same bytes.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.DOTALL)  # it would hold for the whole page
    prefix = f"f{hashlib.sha256((label + text).encode()).hexdigest()[:8]}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'href="#', f'href="#{prefix}', text)
    text = re.sub(r"url\(#", f"url(#{prefix}", text)
    for role, value in LIGHT.items():
        text = text.replace(value, f"var(--{role})")
    text = re.sub(r'font-family: [^;"]*', "font-family: var(--font)", text)
    text = re.sub(r"font: ([^;\"']*?)'[^;\"]*", r"font: \1var(--font)", text)  # as matplotlib wrote it before 3.9
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{_escaped(label)}"', 1)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def theme_css() -> str:
    """The variables that `svg` refers to: light, and dark on a screen that asks for it (paper is printed light)."""
    light, dark = ("".join(f"--{role}:{value};" for role, value in theme.items()) for theme in (LIGHT, DARK))
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}"
