"""Every picture of the project: functions from arrays to a matplotlib Figure, in one style; `svg` puts one inline."""

from .attacks import confidences, epsilon_delta, tradeoff
from .comparison import agreement, score_seconds, strips
from .models import accuracies, checkpoint_seconds, class_accuracies, timeline
from .score import Mark, epsilon_histogram, epsilon_sorted, faults, ruler
from .style import ROLES, colour, method_style, new_figure, styled, svg, theme_css

__all__ = [
    "ROLES",
    "Mark",
    "accuracies",
    "agreement",
    "checkpoint_seconds",
    "class_accuracies",
    "colour",
    "confidences",
    "epsilon_delta",
    "epsilon_histogram",
    "epsilon_sorted",
    "faults",
    "method_style",
    "new_figure",
    "ruler",
    "score_seconds",
    "strips",
    "styled",
    "svg",
    "theme_css",
    "timeline",
    "tradeoff",
]
