"""A lower bound of each epsilon: attacks chosen on one half of the models, counted on the other."""

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from kit.errors import InputError
from local_eval.metric import MetricSpec, WindowAttack, best_attack, checked_samples
from local_eval.metric.chunks import map_chunks
from local_eval.metric.epsilon import Values


@dataclass(frozen=True)
class LowerBounds:
    """epsilon (n_examples,): each below the true epsilon of its example with probability 1 - failure at least.

    attacks: the window behind each, with the rates counted on the held-out models, None where nothing speaks;
    n_held_out: unlearned and retrained models counted.
    """

    epsilon: np.ndarray
    attacks: tuple[WindowAttack | None, ...]
    failure: float
    n_held_out: tuple[int, int]


def epsilon_lower_bounds(
    unlearned, retrained, spec: MetricSpec | None = None, *, failure: float = 0.05, seed: int = 0
) -> LowerBounds:
    """Clopper-Pearson lower bound of the epsilon of each example.

    unlearned, retrained: confidences (n_models, n_examples). On a random half of the models the threshold or window
    with the largest bound is chosen; its two error rates are counted on the other half, and each is taken at the upper
    end of its Clopper-Pearson interval of failure / 2 (Nasr et al. 2021; Zanella-Beguelin et al. 2023). `failure` holds
    for one example; for all of n at once pass failure / n. Raises InputError below four models.
    """
    spec = spec or MetricSpec()
    unlearned, retrained = checked_samples(unlearned, retrained)
    if not 0 < failure < 1:
        raise InputError(f"failure is {failure}: give a probability between 0 and 1")
    if min(len(unlearned), len(retrained)) < 4:
        raise InputError("a bound needs 4 models of either kind at least: half to choose the attack, half to count")
    rng = np.random.default_rng(seed)
    (u_choose, u_count), (r_choose, r_count) = (_split(sample, rng) for sample in (unlearned, retrained))
    values = Values(bound_table(len(r_choose), len(u_choose), spec.delta, failure))

    def attack_on(i: int) -> WindowAttack | None:
        chosen = best_attack(u_choose[:, i], r_choose[:, i], spec, values)
        if chosen is None:
            return None
        n_u, n_r = (int(((x >= chosen.lo) & (x <= chosen.hi)).sum()) for x in (u_count[:, i], r_count[:, i]))
        if chosen.inside_is_unlearned:
            false_positives, n_negatives, misses, n_positives = n_r, len(r_count), len(u_count) - n_u, len(u_count)
        else:
            false_positives, n_negatives, misses, n_positives = n_u, len(u_count), len(r_count) - n_r, len(r_count)
        fpr_up, fnr_up = upper_rate(false_positives, n_negatives, failure), upper_rate(misses, n_positives, failure)
        bound = min(float(epsilon_of_rates(fpr_up, fnr_up, spec.delta)), spec.cap)
        fpr, fnr = false_positives / n_negatives, misses / n_positives
        return WindowAttack(bound, chosen.lo, chosen.hi, chosen.inside_is_unlearned, fpr, fnr)

    found = map_chunks(lambda some: [attack_on(i) for i in range(some.start, some.stop)], unlearned.shape[1], 16)
    attacks = tuple(attack for some in found for attack in some)
    bounds = np.array([0.0 if attack is None else attack.epsilon for attack in attacks])
    return LowerBounds(bounds, attacks, failure, (len(u_count), len(r_count)))


def _split(sample: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    rows = rng.permutation(len(sample))
    return sample[rows[: len(rows) // 2]], sample[rows[len(rows) // 2 :]]


def upper_rate(errors, n: int, failure: float) -> np.ndarray:
    """The largest rate that `errors` of n still allow: one of two one-sided bounds, each failing with failure / 2."""
    errors = np.asarray(errors)
    return np.where(errors >= n, 1.0, betaincinv(errors + 1, np.maximum(n - errors, 1), 1 - failure / 2))


def epsilon_of_rates(fpr, fnr, delta: float) -> np.ndarray:
    """The definition in float64 for rates above 0, not below 0; 0 where both are 1 and say nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        forms = [np.log(1 - delta - a) - np.log(b) for a, b in ((fpr, fnr), (fnr, fpr))]
    return np.nan_to_num(np.maximum(np.fmax(*forms), 0.0), nan=0.0)


def bound_table(n_negatives: int, n_positives: int, delta: float, failure: float) -> np.ndarray:
    """table[false positives, false negatives] of the lower bound: what the choice of an attack maximises.

    The plain epsilon would choose attacks that rest on one or two models, whose bound is worthless.
    """
    fpr = upper_rate(np.arange(n_negatives + 1), n_negatives, failure)
    fnr = upper_rate(np.arange(n_positives + 1), n_positives, failure)
    return epsilon_of_rates(fpr[:, None], fnr, delta)
