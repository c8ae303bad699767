"""Two pools to a row of the table: score and what it is made of, beside do nothing and retraining.

Where whole classes are forgotten (policy `class`), retrained models know none of them, and a test accuracy over all
classes would pay a method for what it failed to forget. So `test`, and with it the score, then counts the test images
of the retained classes alone; those of the forgotten ones are a part of their own, `forgotten_test`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from data_stubs.splits import Splits
from kit.errors import InputError
from local_eval.audit.null import Null, null_quality
from local_eval.metric import MetricSpec, grid_epsilon, logit_scaled_confidence, score_samples
from local_eval.metric.score import Attack
from local_eval.pool import EVALUATED, ModelPool
from local_eval.recipes import GIVEN
from local_eval.retrained import original_pool, retrained_pool
from local_eval.rows import DO_NOTHING, NULL
from local_eval.setting import Workspace


@dataclass(frozen=True)
class Row:
    """One line of the table. Accuracies and ratios are means over models; epsilon (n_examples,) is of the form scored.

    whole_test_accuracy counts all classes, test_accuracy the retained ones, forgotten_test_accuracy the others (None
    where there are none). time_ratio: seconds over those of retraining, None where these were not measured.
    """

    name: str
    n_models: int
    score: float
    forgetting_quality: float
    retain_ratio: float
    test_ratio: float
    retain_accuracy: float
    forget_accuracy: float
    test_accuracy: float
    whole_test_accuracy: float
    mean_epsilon: float
    seconds: float
    time_ratio: float | None
    epsilon: np.ndarray
    forgotten_test_accuracy: float | None = None


@dataclass(frozen=True)
class Sample:
    """N models as the score sees them.

    logits: part -> (n_models, n_examples, n_classes); labels: part -> (n_examples,); seconds (n_models,). Parts are
    forget, retain and test, and forgotten_test where whole classes are forgotten.
    """

    logits: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    seconds: np.ndarray

    @cached_property
    def confidence(self) -> np.ndarray:
        """Logit-scaled confidences on the forget set, float64 (n_models, n_examples)."""
        return logit_scaled_confidence(self.logits["forget"], self.labels["forget"])

    @cached_property
    def correct(self) -> dict[str, np.ndarray]:
        """Part -> right or wrong, (n_models, n_examples)."""
        return {part: self.logits[part].argmax(-1) == self.labels[part] for part in self.logits}

    @property
    def accuracy(self) -> dict[str, np.ndarray]:
        """Part -> accuracy of each model, (n_models,)."""
        return {part: correct.mean(axis=1) for part, correct in self.correct.items()}

    def __len__(self) -> int:
        return len(self.seconds)

    def take(self, rows: slice) -> "Sample":
        return Sample({part: logits[rows] for part, logits in self.logits.items()}, self.labels, self.seconds[rows])

    def repeated(self, n_models: int) -> "Sample":
        """One model as often as asked for, kept once: what doing nothing submits."""
        logits = {part: np.broadcast_to(logits, (n_models, *logits.shape[1:])) for part, logits in self.logits.items()}
        return Sample(logits, self.labels, np.zeros(n_models))


def sample_of(pool: ModelPool, n_models: int, workspace: Workspace) -> Sample:
    """The first n_models of a pool."""
    arrays = pool.read(n_models)
    logits = {part: arrays[part] for part in EVALUATED}
    labels = {name: np.asarray(part.labels) for name, part in workspace.evaluated().items()}
    forgotten = np.isin(labels["test"], forgotten_classes(workspace.splits))
    if forgotten.any():
        for values, axis in ((logits, 1), (labels, 0)):
            whole = values["test"]
            values["test"], values["forgotten_test"] = (
                np.compress(rows, whole, axis) for rows in (~forgotten, forgotten)
            )
    return Sample(logits, labels, arrays["seconds"])


def forgotten_classes(splits: Splits) -> np.ndarray:
    """The classes of which nothing is retained, sorted (n_forgotten,); empty except under the policy `class`."""
    return np.setdiff1d(splits.forget.labels, splits.retain.labels)


def score_row(name: str, unlearned: Sample, retrained: Sample, spec: MetricSpec, attack: Attack = grid_epsilon) -> Row:
    """One method's row: its score against the retrained models, by the given form of the attacks."""
    result = score_samples(
        unlearned.confidence,
        retrained.confidence,
        ra_u=unlearned.accuracy["retain"],
        ra_r=retrained.accuracy["retain"],
        ta_u=unlearned.accuracy["test"],
        ta_r=retrained.accuracy["test"],
        spec=spec,
        attack=attack,
    )
    accuracy = {f"{part}_accuracy": float(values.mean()) for part, values in unlearned.accuracy.items()}
    of_test = [correct for part, correct in unlearned.correct.items() if part.endswith("test")]
    seconds, retraining_s = float(np.mean(unlearned.seconds)), float(np.mean(retrained.seconds))
    return Row(
        name=name,
        n_models=len(unlearned),
        score=result.score,
        forgetting_quality=result.forgetting_quality,
        retain_ratio=result.retain_ratio,
        test_ratio=result.test_ratio,
        mean_epsilon=result.mean_epsilon,
        seconds=seconds,
        time_ratio=seconds / retraining_s if retraining_s > 0 else None,
        whole_test_accuracy=float(np.concatenate(of_test, axis=1).mean()),
        epsilon=result.epsilons.epsilon,
        **accuracy,
    )


@dataclass(frozen=True)
class Samples:
    """What an evaluation compares: methods by name, the retrained models and the original one, as samples; None for the
    original where models came as files and it did not. groups (n_forget,): the subject of each example of the forget
    set; None where each is its own."""

    methods: Mapping[str, Sample]
    retrained: Sample
    original: Sample | None
    groups: np.ndarray | None = None

    @property
    def n_models(self) -> int:
        return len(self.retrained)

    @property
    def beside(self) -> dict[str, Sample]:
        """The methods, and doing nothing (the original N times, in no time) where the original is known."""
        nothing = {} if self.original is None else {DO_NOTHING: self.original.repeated(self.n_models)}
        return {**self.methods, **nothing}


def read_samples(workspace: Workspace, pools: Mapping[str, ModelPool], n_models: int) -> Samples:
    """Read n_models of each pool, at least 2. InputError where a pool belongs to another setting or has fewer."""
    if n_models < 2:
        raise InputError(f"n_models is {n_models}: the score compares distributions and needs at least 2 models")
    if taken := {*pools} & {DO_NOTHING, NULL, "retrained", "retraining"}:
        raise InputError(f"{min(taken)!r}: is the name of something else in each table: give the models another")
    for name, pool in pools.items():
        if pool.identity.get("setting") != workspace.name:
            raise InputError(
                f"{pool.folder}: the pool of {name} was made in setting {pool.identity.get('setting')}, "
                f"the retrained models in {workspace.name}: compare pools of one setting only"
            )
    if np.isin(workspace.splits.test.labels, forgotten_classes(workspace.splits)).all():
        raise InputError("every test image is of a forgotten class: there is nothing to measure the test accuracy on")
    return Samples(
        methods={name: sample_of(pool, n_models, workspace) for name, pool in pools.items()},
        retrained=sample_of(retrained_pool(workspace), n_models, workspace),
        original=None if _no_original(workspace) else sample_of(original_pool(workspace), 1, workspace),
        groups=_subjects(workspace.splits),
    )


def _no_original(workspace: Workspace) -> bool:
    return workspace.setting.recipe.startswith(GIVEN) and 0 not in original_pool(workspace)


def _subjects(splits: Splits) -> np.ndarray | None:
    """The subjects of the forget set where some have several examples, and there are two or more."""
    groups = splits.forget.groups
    return groups if 1 < len(np.unique(groups)) < len(groups) else None


def evaluate(samples: Samples, spec: MetricSpec | None = None, attack: Attack = grid_epsilon) -> list[Row]:
    """A row for each method, then the two rows it has to be seen beside: doing nothing (the original N times, in no
    time) and, from four models and two examples on, the null: what retraining itself gets at this number of models."""
    spec = spec or MetricSpec()
    retrained = samples.retrained
    rows = [score_row(name, sample, retrained, spec, attack) for name, sample in samples.beside.items()]
    if samples.n_models >= 4 and retrained.confidence.shape[1] > 1:
        rows.append(_null_row(retrained, spec, attack))
    return rows


def _null_row(retrained: Sample, spec: MetricSpec, attack: Attack) -> Row:
    """Retrained against as many retrained models: the accuracies are equal, F and epsilon those of `null_quality`."""
    try:
        return null_row(retrained, null_quality(retrained.confidence, len(retrained), spec, attack), spec, attack)
    except InputError:  # too few models for any example to get a point
        return null_row(retrained, None, spec, attack)


def null_row(retrained: Sample, null: Null | None, spec: MetricSpec, attack: Attack) -> Row:
    """The row of a null that is known already; None where no example got a point."""
    row = score_row(NULL, retrained, retrained, spec, attack)
    if null is None:
        return replace(row, score=0.0, forgetting_quality=0.0, mean_epsilon=spec.cap, epsilon=row.epsilon + spec.cap)
    quality = null.quality.value
    return replace(row, score=quality, forgetting_quality=quality, mean_epsilon=null.mean_epsilon, epsilon=null.epsilon)
