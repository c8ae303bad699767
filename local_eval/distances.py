"""How far a method's models are from retrained ones beyond the score: outputs on the forget set, and parameters."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kit.errors import InputError
from local_eval.audit import families
from local_eval.evaluate import DO_NOTHING, NULL, Sample, Samples


@dataclass(frozen=True)
class Distance:
    """Means over pairs of an unlearned and a retrained model, on the forget set, see `local_eval.audit.families`.

    activation: L2 distance of the softmax outputs; js, kl: divergences in nats; similarity: the ratio gamma, above 0.5
    where the outputs are nearer to retraining than to the original (None where the forget set has one class only:
    no class can then be ranked against the rest).
    """

    activation: float
    js: float
    kl: float
    similarity: float | None


def distances(samples: Samples) -> dict[str, Distance]:
    """Every method, doing nothing and, from two models on, retraining itself (one half against the other)."""
    half = samples.n_models // 2
    retrained = samples.retrained
    found = {name: _distance(sample, retrained, samples.original) for name, sample in samples.methods.items()}
    found[DO_NOTHING] = _distance(samples.original.repeated(samples.n_models), retrained, samples.original)
    if half:
        halves = retrained.take(slice(0, half)), retrained.take(slice(half, 2 * half))
        found[NULL] = _distance(*halves, samples.original)
    return found


def _distance(unlearned: Sample, retrained: Sample, original: Sample) -> Distance:
    labels = unlearned.labels["forget"]
    pair = (unlearned.logits["forget"], retrained.logits["forget"])
    similarity = None
    if len(np.unique(labels)) > 1:
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


def parameter_distance(
    unlearned: Mapping[str, Tensor], original: Mapping[str, Tensor], retrained: Mapping[str, Tensor]
) -> float:
    """|w - w_r| / |w* - w_r| in the L2 norm over all parameters: 0 as retrained, 1 as far from it as the original.

    The three are state dicts of one architecture, or dict(net.named_parameters()); entries that are no floating-point
    numbers do not count. Made for convex problems, where retraining has one solution. Raises InputError where names or
    shapes differ, or where the original equals the retrained one. Source: Peste, Alistarh and Lampert 2021, section 4.
    """
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in (unlearned, original, retrained)]
    if not shapes[0] == shapes[1] == shapes[2]:
        raise InputError("the three models have other parameters: compare models of one architecture")
    names = [name for name, tensor in original.items() if tensor.is_floating_point()]

    def norm(state: Mapping[str, Tensor]) -> float:
        parts = [(state[name].double() - retrained[name].double()).square().sum().item() for name in names]
        return sum(parts) ** 0.5

    with torch.no_grad():
        whole = norm(original)
        if whole == 0:
            raise InputError("original and retrained model are equal: the distance between them is the unit")
        return norm(unlearned) / whole
