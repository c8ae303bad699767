"""How sure a score is, what it could be at best, what keeps it from there, and what other measures say."""

from .diagnosis import Diagnosis, diagnose, sentence
from .intervals import Accuracies, Interval, probability_above, quality_interval, ratio_interval, score_interval
from .lower_bounds import LowerBounds, epsilon_lower_bounds
from .null import Null, null_quality, share_of_attainable
from .predict import Prediction, predict_quality, ranking_warning
from .resampling import Resamples, resample

__all__ = [
    "Accuracies",
    "Diagnosis",
    "Interval",
    "LowerBounds",
    "Null",
    "Prediction",
    "Resamples",
    "diagnose",
    "epsilon_lower_bounds",
    "null_quality",
    "predict_quality",
    "probability_above",
    "quality_interval",
    "ranking_warning",
    "ratio_interval",
    "resample",
    "score_interval",
    "sentence",
    "share_of_attainable",
]
