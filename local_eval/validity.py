"""What a local score means for Kaggle's: how this kind of setting ranked submissions whose Kaggle scores are known.

From the record of `python -m benchmarks.validity.replay`. A setting without one ranks methods on its own data, and
nothing is known beyond that.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from local_eval.audit.expected import expected_at_512
from local_eval.audit.intervals import Interval
from local_eval.evaluate import Row, Samples
from local_eval.report.assessment import interval_text
from local_eval.report.kaggle import ATTAINABLE
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
    """How a kind of setting, or several together, ranked known submissions.

    spearman: rank correlation of the score expected at 512 models with Kaggle's over the submissions of `names`, with
    its 95% interval; local, kaggle (n_points,): those scores.
    """

    names: tuple[str, ...]
    local: np.ndarray
    kaggle: np.ndarray
    spearman: float
    interval: tuple[float, float]
    what: str = "This kind of setting"

    @property
    def n_points(self) -> int:
        return len(self.names)

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
            return f"{self.what} ranked {self.n_points} submissions as Kaggle did with {found}."
        return (
            f"{self.what} does not predict Kaggle's order yet: over {self.n_points} submissions the scores "
            f"expected at 512 models have {found}."
        )

    def about(self, local: float) -> str:
        """What a score of `local` expected at 512 models says of Kaggle's."""
        if not self.predicts:
            return self.sentence
        forecast, most, beyond = self.forecast(local), self.local.max(), ""
        if local > most:
            beyond = f"; {local:.4f} here lies beyond the {most:.4f} of the best of them"
        return (
            f"{self.sentence} By it, a submission like this one gets {interval_text(forecast)} on Kaggle "
            f"({forecast.level:.0%} of new ones lie in there{beyond})."
        )

    def forecast(self, local: float, level: float = 0.8) -> Interval:
        """Kaggle's score where the score expected at 512 models is `local` here, with its prediction interval.

        Least squares of the logarithms over the known submissions; the interval is that of a new observation. No score
        lies above what a perfect unlearner gets there.
        """
        x, y = (np.log(np.maximum(values, _LEAST)) for values in (self.local, self.kaggle))
        slope, intercept = np.polyfit(x, y, 1)
        at, degrees = np.log(max(local, _LEAST)), len(x) - 2
        residual = np.sqrt(np.sum((y - intercept - slope * x) ** 2) / degrees)
        error = residual * np.sqrt(1 + 1 / len(x) + (at - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2))
        middle, half = intercept + slope * at, stats.t.ppf(0.5 + level / 2, degrees) * error
        value, low, high = (float(min(np.exp(v), ATTAINABLE)) for v in (middle, middle - half, middle + half))
        return Interval(value, low, high, float(value * error), level)


def validation_of(setting: Setting, record: Path = RECORD) -> Validation | None:
    """What the record's entries for settings like this one say together; None where there are none."""
    points = recorded_points(setting, record)
    local, kaggle = (np.array([point[name] for point in points.values()]) for name in (MEASURE, "kaggle"))
    return Validation(tuple(points), local, kaggle, *rank_correlation(kaggle, local)) if points else None


def recorded_points(setting: Setting, record: Path = RECORD) -> dict[str, dict]:
    """The submissions that were run again in settings like this one, by name, with all that was measured.

    One that several entries have counts once, with the geometric mean of its expected scores.
    """
    fields, found = asdict(setting), defaultdict(list)
    for entry in _entries(record).values():
        if "setting" in entry and all(entry["setting"].get(name) == fields[name] for name in _SAME):
            for name, point in entry["points"].items():
                found[name].append(point)
    return {
        name: points[0] | {MEASURE: geometric_mean([point[MEASURE] for point in points])} if points[1:] else points[0]
        for name, points in found.items()
    }


def validation_together(settings: Sequence[Setting], record: Path = RECORD) -> Validation | None:
    """Of several stand-ins at once, over the submissions that all of them have: by the geometric mean of what they
    expect. None where one of them was not recorded."""
    points = points_together(settings, record)
    local, kaggle = (np.array([point[name] for point in points.values()]) for name in (MEASURE, "kaggle"))
    what = "These stand-ins together"
    return Validation(tuple(points), local, kaggle, *rank_correlation(kaggle, local), what) if points else None


def points_together(settings: Sequence[Setting], record: Path = RECORD) -> dict[str, dict]:
    """The submissions that all of these settings have, with the geometric means of what they get there."""
    each = [recorded_points(setting, record) for setting in settings]
    means = {
        name: {key: geometric_mean([points[name][key] for points in each]) for key in (MEASURE, "score")}
        for name in each[0]
        if all(name in points for points in each)
    }
    return {name: {"kaggle": each[0][name]["kaggle"], "kind": each[0][name]["kind"], **means[name]} for name in means}


def geometric_mean(scores: Sequence[float]) -> float:
    """Of scores, those that are nothing taken as the least that is told apart."""
    return float(np.exp(np.mean(np.log(np.maximum(scores, _LEAST)))))


def expected_score(samples: Samples, row: Row) -> float:
    """The score expected at 512 models of a row's method: what is forecast from."""
    quality = expected_at_512(samples.methods[row.name].confidence, samples.retrained.confidence)
    return quality * row.retain_ratio * row.test_ratio


def rank_correlation(
    a: np.ndarray, b: np.ndarray, *, n_resamples: int = 2000, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Spearman's rank correlation of two arrays (n,), 0 where one is constant, with the 95% interval of the percentile
    bootstrap over pairs; ties get their mean rank.

    >>> rank_correlation(np.arange(9), np.arange(9) ** 3)[0]
    1.0
    """
    pairs = np.stack([a, b], axis=1)
    drawn = np.random.default_rng(seed).integers(len(pairs), size=(n_resamples, len(pairs)))
    found = _spearman(np.concatenate([pairs[None], pairs[drawn]]))
    low, high = np.nanpercentile(found[1:], [2.5, 97.5]) if np.isfinite(found[1:]).any() else (-1.0, 1.0)
    return float(np.nan_to_num(found[0])), (float(low), float(high))


def _spearman(pairs: np.ndarray) -> np.ndarray:
    """Of samples (n_samples, n, 2); NaN where one of the two is constant."""
    ranks = stats.rankdata(pairs, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return ranks.prod(axis=2).sum(axis=1) / np.sqrt((ranks**2).sum(axis=1).prod(axis=1))


def _entries(record: Path) -> Mapping[str, Any]:
    try:
        return json.loads(record.read_text())["results"]
    except FileNotFoundError:  # a copy without the benchmarks
        return {}
