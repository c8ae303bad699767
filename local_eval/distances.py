"""How far a method's models are from retrained ones beyond the score: outputs on the forget set, and parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from local_eval.audit import families
from local_eval.rows import NULL

if TYPE_CHECKING:  # torch is behind it, and arrays are assessed without
    from local_eval.evaluate import Sample, Samples


@dataclass(frozen=True)
class Distance:
    """Means over pairs of an unlearned and a retrained model, on the forget set, see `local_eval.audit.families`.

    activation: L2 distance of the softmax outputs; js, kl: divergences in nats; similarity: the ratio gamma, above 0.5
    where the outputs are nearer to retraining than to the original (None where that is not known, and where the forget
    set has one class only: no class can then be ranked against the rest).
    """

    activation: float
    js: float
    kl: float
    similarity: float | None


def distances(samples: Samples) -> dict[str, Distance]:
    """Every method, doing nothing and, from two models on, retraining itself (one half against the other)."""
    half = samples.n_models // 2
    retrained = samples.retrained
    found = {name: _distance(sample, retrained, samples.original) for name, sample in samples.beside.items()}
    if half:
        halves = retrained.take(slice(0, half)), retrained.take(slice(half, 2 * half))
        found[NULL] = _distance(*halves, samples.original)
    return found


def _distance(unlearned: Sample, retrained: Sample, original: Sample | None) -> Distance:
    labels = unlearned.labels["forget"]
    pair = (unlearned.logits["forget"], retrained.logits["forget"])
    similarity = None
    if original is not None and len(np.unique(labels)) > 1:
        start = original.logits["forget"][0]
        similarity = float(
            np.mean([families.similarity_ratio(u, start, r, labels) for u, r in zip(*pair, strict=True)])
        )
    return Distance(
        activation=families.activation_distance(*pair),
        js=families.js_divergence(*pair),
        kl=families.kl_divergence(*pair),
        similarity=similarity,
    )
