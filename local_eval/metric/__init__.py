"""The competition's score as pure functions on arrays: confidence -> attacks -> epsilon -> quality -> score."""

from .best_attack import WindowAttack, best_attack
from .checks import checked_samples
from .confidence import logit_scaled_confidence
from .epsilon import EpsilonResult, epsilon_from_rates, epsilon_table
from .exact import exact_epsilon
from .forgetting_quality import forgetting_quality, points
from .grid import grid_epsilon
from .score import FORMS, Attack, Score, final_score, form_of, points_of, score_samples
from .spec import BINS, MetricSpec, bins_as_in_code, bins_as_in_report

__all__ = [
    "BINS",
    "FORMS",
    "Attack",
    "EpsilonResult",
    "MetricSpec",
    "Score",
    "WindowAttack",
    "best_attack",
    "bins_as_in_code",
    "bins_as_in_report",
    "checked_samples",
    "epsilon_from_rates",
    "epsilon_table",
    "exact_epsilon",
    "final_score",
    "forgetting_quality",
    "form_of",
    "grid_epsilon",
    "logit_scaled_confidence",
    "points",
    "points_of",
    "score_samples",
]
