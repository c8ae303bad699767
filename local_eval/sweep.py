"""A method at several values of its hyper-parameters: accuracies and score of each, and the best of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from kit.errors import InputError
from kit.methods import Method, with_settings
from local_eval.assess import FEWEST
from local_eval.distances import Distance, distances
from local_eval.evaluate import DO_NOTHING, NULL, Row, Samples, evaluate, read_samples
from local_eval.metric import MetricSpec, grid_epsilon
from local_eval.metric.score import Attack
from local_eval.pool import ModelPool
from local_eval.setting import Workspace
from local_eval.unlearned import broken_reason, fill_points

ACCURACIES = ("retain", "forget", "test")


@dataclass(frozen=True)
class Point:
    """One setting of the sweep: the method so set, `settings` as --set takes them, `values` of those that vary."""

    method: Method
    settings: tuple[str, ...]
    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.values.items())


@dataclass(frozen=True)
class Outcome:
    """What became of a point. row, distance, spread (part -> standard deviation of the accuracy over models) and
    gap are None where the method gave no usable model; broken then says why.

    gap: mean absolute difference of the retain, forget and test accuracy from the retrained models' means.
    """

    point: Point
    pool: ModelPool
    row: Row | None = None
    distance: Distance | None = None
    spread: Mapping[str, float] | None = None
    gap: float | None = None
    broken: str | None = None


@dataclass(frozen=True)
class Sweep:
    """swept: the values by name; outcomes in the grid's order; retrained: mean accuracy of the retrained models by
    part; beside: row and distance of doing nothing and, from four models on, of retraining against itself."""

    method: str
    swept: Mapping[str, tuple]
    n_models: int
    outcomes: Sequence[Outcome]
    retrained: Mapping[str, float]
    beside: Sequence[tuple[Row, Distance]]

    @property
    def scored(self) -> bool:
        """Are there enough models for a score to mean anything?"""
        return self.n_models >= FEWEST


def grid(method: Method, settings: Sequence[str]) -> list[Point]:
    """Every combination of the values of `name=value,value,...` settings, the first name varying slowest.

    A name with one value is fixed. Raises InputError as `with_settings` does, and where nothing varies.
    """
    values: dict[str, list[str]] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not all(value.strip() for value in text.split(",")):
            raise InputError(f"--set {setting}: expected name=value or name=value,value,...")
        if name in values:
            raise InputError(f"--set {setting}: {name} is set twice: write {name}=value,value,... once")
        values[name] = [value.strip() for value in text.split(",")]
    points: dict[tuple, Point] = {}
    for combination in product(*values.values()):
        chosen = tuple(f"{name}={value}" for name, value in zip(values, combination, strict=True))
        set_so = with_settings(method, chosen)
        varying = {name: set_so.settings[name] for name in values if len(values[name]) > 1}
        points.setdefault(tuple(varying.values()), Point(set_so, chosen, varying))  # 1 and 1.0 are one point
    if len(points) < 2:
        raise InputError("sweep: give at least one --set name=value,value,... with two values or more")
    return list(points.values())


def fill_sweep(
    workspace: Workspace,
    points: Sequence[Point],
    n_models: int,
    *,
    seed: int = 0,
    devices: Sequence[str] = (),
    progress: bool = True,
    metric: MetricSpec | None = None,
    attack: Attack = grid_epsilon,
) -> Sweep:
    """Unlearn what is missing of n_models models at every point, and measure them against the retrained models, which
    must be there. Pools are those that `fill_unlearned` makes of the same methods."""
    methods = [point.method for point in points]
    pools = fill_points(workspace, methods, n_models, seed=seed, devices=devices, progress=progress)
    whole = {point.name: pool for point, pool in zip(points, pools, strict=True) if broken_reason(pool) is None}
    samples = read_samples(workspace, whole, n_models)
    rows = {row.name: row for row in evaluate(samples, metric, attack)}
    apart = distances(samples)
    retrained = {part: float(values.mean()) for part, values in samples.retrained.accuracy.items()}
    return Sweep(
        method=points[0].method.name,
        swept={name: tuple(dict.fromkeys(p.values[name] for p in points)) for name in points[0].values},
        n_models=n_models,
        outcomes=[
            _outcome(point, pool, samples, rows[point.name], apart[point.name], retrained)
            if point.name in whole
            else Outcome(point, pool, broken=broken_reason(pool))
            for point, pool in zip(points, pools, strict=True)
        ],
        retrained=retrained,
        beside=[(rows[name], apart[name]) for name in (DO_NOTHING, NULL) if name in rows],
    )


def _outcome(
    point: Point, pool: ModelPool, samples: Samples, row: Row, distance: Distance, retrained: Mapping[str, float]
) -> Outcome:
    accuracy = samples.methods[point.name].accuracy
    gaps = [abs(accuracy[part].mean() - retrained[part]) for part in ACCURACIES]
    spread = {part: float(values.std(ddof=1)) for part, values in accuracy.items()}
    return Outcome(point, pool, row, distance, spread, float(np.mean(gaps)))


Criterion = Callable[[Outcome], float]


def by_score(outcome: Outcome) -> float:
    return outcome.row.score


def by_accuracy(outcome: Outcome) -> float:
    return -outcome.gap


def by_similarity(outcome: Outcome) -> float:
    if outcome.distance.similarity is None:
        raise InputError("--best-by similarity: the forget set has one class: choose another criterion")
    return outcome.distance.similarity


CRITERIA: dict[str, tuple[Criterion, str]] = {
    "accuracy": (by_accuracy, "retain, forget and test accuracy nearest to the retrained models'"),
    "score": (by_score, "the highest score"),
    "similarity": (by_similarity, "the highest similarity ratio"),
}


def best(sweep: Sweep, criterion: Criterion) -> Outcome | None:
    """The outcome of the largest criterion, the smaller gap of the accuracies deciding a tie; None if all broke."""
    usable = [outcome for outcome in sweep.outcomes if outcome.row is not None]
    return max(usable, key=lambda outcome: (criterion(outcome), -outcome.gap), default=None)
