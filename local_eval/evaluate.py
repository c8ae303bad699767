"""Two pools to a row of the table: score and what it is made of, beside do nothing and retraining."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kit.errors import InputError
from local_eval.metric import MetricSpec, grid_epsilon, logit_scaled_confidence, score_samples
from local_eval.metric.score import Attack
from local_eval.pool import EVALUATED, ModelPool
from local_eval.retrained import original_pool, retrained_pool
from local_eval.setting import Workspace

DO_NOTHING = "do nothing"
NULL = "retrain (null: half the pool against the other half)"


@dataclass(frozen=True)
class Row:
    """One line of the table. Accuracies and ratios are means over models; epsilon (n_examples,) is of the grid form."""

    name: str
    n_models: int
    score: float
    forgetting_quality: float
    retain_ratio: float
    test_ratio: float
    retain_accuracy: float
    forget_accuracy: float
    test_accuracy: float
    mean_epsilon: float
    seconds: float
    epsilon: np.ndarray


@dataclass(frozen=True)
class Sample:
    """What the score needs of N models.

    confidence (n_models, n_examples) on the forget set; correct: part -> (n_models, n_examples) of that part, right or
    wrong; seconds (n_models,).
    """

    confidence: np.ndarray
    correct: Mapping[str, np.ndarray]
    seconds: np.ndarray

    @property
    def accuracy(self) -> dict[str, np.ndarray]:
        """Part -> accuracy of each model, (n_models,)."""
        return {part: correct.mean(axis=1) for part, correct in self.correct.items()}

    def __len__(self) -> int:
        return len(self.confidence)

    def take(self, rows: slice) -> "Sample":
        correct = {part: values[rows] for part, values in self.correct.items()}
        return Sample(self.confidence[rows], correct, self.seconds[rows])

    def repeated(self, n_models: int) -> "Sample":
        """One model as often as asked for: what doing nothing submits."""
        correct = {part: np.repeat(values, n_models, axis=0) for part, values in self.correct.items()}
        return Sample(np.repeat(self.confidence, n_models, axis=0), correct, np.zeros(n_models))


def sample_of(arrays: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]) -> Sample:
    """Confidences and accuracies of logits as ModelPool.read gives them; labels: part -> (n_examples,)."""
    correct = {part: arrays[part].argmax(-1) == labels[part] for part in EVALUATED}
    return Sample(logit_scaled_confidence(arrays["forget"], labels["forget"]), correct, arrays["seconds"])


def labels_of(workspace: Workspace) -> dict[str, np.ndarray]:
    return {name: np.asarray(part.labels) for name, part in workspace.evaluated().items()}


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
    return Row(
        name=name,
        n_models=len(unlearned),
        score=result.score,
        forgetting_quality=result.forgetting_quality,
        retain_ratio=result.retain_ratio,
        test_ratio=result.test_ratio,
        mean_epsilon=result.mean_epsilon,
        seconds=float(np.mean(unlearned.seconds)),
        epsilon=result.epsilons.epsilon,
        **accuracy,
    )


def evaluate(
    workspace: Workspace,
    pools: Mapping[str, ModelPool],
    n_models: int,
    spec: MetricSpec | None = None,
    attack: Attack = grid_epsilon,
) -> list[Row]:
    """A row for each unlearned pool, then the two rows it has to be seen beside. n_models: of each pool, at least 2.

    Raises InputError where a pool belongs to another setting or has fewer models.
    """
    spec = spec or MetricSpec()
    if n_models < 2:
        raise InputError(f"n_models is {n_models}: the score compares distributions and needs at least 2 models")
    for name, pool in pools.items():
        if pool.identity.get("setting") != workspace.name:
            raise InputError(
                f"{pool.folder}: the pool of {name} was made in setting {pool.identity.get('setting')}, "
                f"the retrained models in {workspace.name}: compare pools of one setting only"
            )
    labels = labels_of(workspace)
    retrained = sample_of(retrained_pool(workspace).read(n_models), labels)
    rows = [
        score_row(name, sample_of(pool.read(n_models), labels), retrained, spec, attack) for name, pool in pools.items()
    ]
    return rows + reference_rows(original_sample(workspace, labels), retrained, spec, attack)


def original_sample(workspace: Workspace, labels: Mapping[str, np.ndarray]) -> Sample:
    """The original model as a sample of one."""
    return sample_of(original_pool(workspace).read(1), labels)


def reference_rows(
    original: Sample, retrained: Sample, spec: MetricSpec, attack: Attack = grid_epsilon
) -> Sequence[Row]:
    """Doing nothing (the original N times, in no time) and, from four models on, the null of two halves."""
    n_models = len(retrained)
    rows = [score_row(DO_NOTHING, original.repeated(n_models), retrained, spec, attack)]
    if n_models >= 4:
        half = n_models // 2
        first, second = retrained.take(slice(0, half)), retrained.take(slice(half, 2 * half))
        rows.append(score_row(NULL, first, second, spec, attack))
    return rows
