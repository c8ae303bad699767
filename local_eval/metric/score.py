"""The final score: forgetting quality times what is left of the accuracy."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kit.errors import InputError

from .checks import as_floats, checked_samples
from .epsilon import EpsilonResult
from .exact import exact_epsilon
from .forgetting_quality import forgetting_quality, points
from .grid import grid_epsilon
from .spec import MetricSpec

Attack = Callable[..., EpsilonResult]  # attack(unlearned, retrained, spec, ends=())
FORMS: dict[str, Attack] = {"grid": grid_epsilon, "exact": exact_epsilon}


def form_of(attacks: str) -> Attack:
    """The form of the attacks of a name in FORMS; InputError for another."""
    if attacks not in FORMS:
        raise InputError(f"attacks {attacks!r}: unknown: choose from {', '.join(FORMS)}")
    return FORMS[attacks]


def points_of(unlearned, retrained, n_models: int, spec: MetricSpec, attack: Attack = grid_epsilon) -> np.ndarray:
    """`points` of each example by the bins of `n_models`, (n_examples,): in less time than by way of its epsilon."""
    return points(attack(unlearned, retrained, spec, ends=spec.bin_ends(n_models)).epsilon, n_models, spec)


@dataclass(frozen=True)
class Score:
    """score = forgetting_quality * retain_ratio * test_ratio; epsilon (n_examples,) as in `EpsilonResult`."""

    score: float
    forgetting_quality: float
    retain_ratio: float
    test_ratio: float
    mean_epsilon: float
    n_models: int
    n_examples: int
    epsilons: EpsilonResult


def final_score(quality: float, ra_u: float, ra_r: float, ta_u: float, ta_r: float) -> float:
    """F * (RA_U / RA_R) * (TA_U / TA_R): retain and test accuracies, means over the unlearned (U) and the
    retrained (R) models. Raises InputError for accuracies outside [0, 1] and for retrained ones of 0."""
    for name, value in (("RA_U", ra_u), ("RA_R", ra_r), ("TA_U", ta_u), ("TA_R", ta_r)):
        if not 0 <= value <= 1:
            raise InputError(f"{name} is {value}: an accuracy is a share between 0 and 1")
    if ra_r == 0 or ta_r == 0:
        raise InputError(f"the retrained models' accuracies are {ra_r} and {ta_r}: models at 0 are no reference")
    return quality * (ra_u / ra_r) * (ta_u / ta_r)


def score_samples(
    unlearned,
    retrained,
    *,
    ra_u,
    ra_r,
    ta_u,
    ta_r,
    spec: MetricSpec | None = None,
    attack: Attack = grid_epsilon,
) -> Score:
    """Two samples of confidences (n_models, n_examples) and their accuracies -> Score.

    Each accuracy is a number or one value per model, whose mean counts.
    """
    spec = spec or MetricSpec()
    unlearned, retrained = checked_samples(unlearned, retrained)
    epsilons = attack(unlearned, retrained, spec)
    n_models = min(len(unlearned), len(retrained))
    quality = forgetting_quality(epsilons.epsilon, n_models, spec)
    ra_u, ra_r, ta_u, ta_r = (float(np.mean(as_floats(a, "accuracies"))) for a in (ra_u, ra_r, ta_u, ta_r))
    return Score(
        score=final_score(quality, ra_u, ra_r, ta_u, ta_r),
        forgetting_quality=quality,
        retain_ratio=ra_u / ra_r,
        test_ratio=ta_u / ta_r,
        mean_epsilon=float(epsilons.epsilon.mean()),
        n_models=n_models,
        n_examples=unlearned.shape[1],
        epsilons=epsilons,
    )
