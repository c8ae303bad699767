"""What a local score means for Kaggle's: how this kind of setting ranked submissions whose Kaggle scores are known.

From the record of `python -m benchmarks.validity.replay`. A setting without one ranks methods on its own data, and
nothing is known beyond that.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from local_eval.audit.intervals import Interval
from local_eval.setting import Setting

RECORD = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "validity.json"
MEASURE = "expected at 512"  # of the record's, what the verdict rests on
NOT_VALIDATED = (
    "Not validated: how scores of this kind of setting relate to Kaggle's has not been measured; they rank methods on "
    "this data only (docs/validity.md; --like competition is the setting made for that)."
)
_SAME = (
    "source",
    "n_train",
    "forget",
    "architecture",
    "recipe",
    "epochs",
    "passes",
    "lr",
    "batch_size",
)  # seeds may differ
_LEAST = 1e-4  # scores below are told from each other neither here nor there


@dataclass(frozen=True)
class Validation:
    """How a kind of setting ranked known submissions.

    spearman: rank correlation of the score expected at 512 models with Kaggle's over n_points submissions, with its 95%
    interval; local, kaggle (n_points,): those scores.
    """

    n_points: int
    spearman: float
    interval: tuple[float, float]
    local: np.ndarray
    kaggle: np.ndarray

    @property
    def predicts(self) -> bool:
        """Is the correlation above 0 for certain?"""
        return self.interval[0] > 0

    @property
    def sentence(self) -> str:
        low, high = self.interval
        found = (
            f"a Spearman correlation of {self.spearman:.2f} (95% interval {low:.2f} to {high:.2f}; docs/validity.md)"
        )
        if self.predicts:
            return f"This kind of setting ranked {self.n_points} submissions as Kaggle did with {found}."
        return (
            f"This kind of setting does not predict Kaggle's order yet: over {self.n_points} submissions the scores "
            f"expected at 512 models have {found}."
        )

    def forecast(self, local: float, level: float = 0.8) -> Interval:
        """Kaggle's score where the score expected at 512 models is `local` here, with its prediction interval.

        Least squares of the logarithms over the known submissions; the interval is that of a new observation.
        """
        x, y = (np.log(np.maximum(values, _LEAST)) for values in (self.local, self.kaggle))
        slope, intercept = np.polyfit(x, y, 1)
        at, degrees = np.log(max(local, _LEAST)), len(x) - 2
        residual = np.sqrt(np.sum((y - intercept - slope * x) ** 2) / degrees)
        error = residual * np.sqrt(1 + 1 / len(x) + (at - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2))
        middle, half = intercept + slope * at, stats.t.ppf(0.5 + level / 2, degrees) * error
        value, low, high = (float(min(np.exp(v), 1.0)) for v in (middle, middle - half, middle + half))
        return Interval(value, low, high, float(value * error), level)


def validation_of(setting: Setting, record: Path = RECORD) -> Validation | None:
    """The record's entry for settings like this one; None where there is none, or it tells nothing."""
    fields = asdict(setting)
    for entry in _entries(record).values():
        if all(entry["setting"].get(name) == fields[name] for name in _SAME):
            group = entry["all"] or entry["fine-tuning"]
            found = group[MEASURE]
            points = list(entry["points"].values())
            local, kaggle = (np.array([point[name] for point in points]) for name in (MEASURE, "kaggle"))
            return Validation(found["n_points"], found["spearman"], tuple(found["interval"]), local, kaggle)
    return None


def _entries(record: Path) -> Mapping[str, Any]:
    try:
        return json.loads(record.read_text())["results"]
    except FileNotFoundError:  # a copy without the benchmarks
        return {}
