"""Epsilon of an attack from its two error rates, and what an attack family returns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .spec import MetricSpec

DISCARDED = -1.0  # in tables: an attack that says nothing; below every epsilon


@dataclass(frozen=True)
class EpsilonResult:
    """Epsilon of each example, and which of them got the cap without a measurement.

    epsilon: (n_examples,) float64 in [0, cap].
    discarded: (n_examples,) bool; every attack on the example was discarded, so epsilon is the cap.
    too_tight: (n_examples,) bool; the ranges differ so much that epsilon is the cap at once.
    """

    epsilon: np.ndarray
    discarded: np.ndarray
    too_tight: np.ndarray


def epsilon_from_rates(fpr, fnr, delta: float = 1e-5) -> np.ndarray:
    """Epsilon of attacks with these rates, in float32 as the released code computes it.

    Both rates 0: infinity. Exactly one 0, or both 1: NaN, the attack is discarded. Otherwise the larger of
    log(1 - delta - fpr) - log(fnr) and log(1 - delta - fnr) - log(fpr), not below 0 (Kairouz et al. 2015).
    """
    fpr, fnr = np.broadcast_arrays(np.asarray(fpr, np.float32), np.asarray(fnr, np.float32))
    most = np.float32(1 - delta)
    with np.errstate(divide="ignore", invalid="ignore"):  # logs of 0 and below: handled by fmax and the masks
        epsilon = np.fmax(np.log(most - fpr) - np.log(fnr), np.log(most - fnr) - np.log(fpr))
    epsilon = np.maximum(epsilon, np.float32(0))  # keeps NaN
    epsilon = np.where((fpr == 0) ^ (fnr == 0), np.float32(np.nan), epsilon)
    return np.where((fpr == 0) & (fnr == 0), np.float32(np.inf), epsilon)


def epsilon_table(n_negatives: int, n_positives: int, delta: float, ends: Sequence[float] = ()) -> np.ndarray:
    """table[false positives, false negatives]: float32 epsilons, DISCARDED where the attack says nothing.

    Epsilon depends on two whole numbers only, so (n_negatives + 1, n_positives + 1) values replace all
    arithmetic on attacks. ends: of bins, to the lower of whose ends epsilons are rounded, where only their bin counts.
    """
    fpr = np.arange(n_negatives + 1, dtype=np.float32) / np.float32(n_negatives)
    fnr = np.arange(n_positives + 1, dtype=np.float32) / np.float32(n_positives)
    table = epsilon_from_rates(fpr[:, None], fnr, delta)
    if len(ends):
        lower = np.array([0.0, *ends], np.float32)
        lower = np.where(lower < [0.0, *ends], np.nextafter(lower, np.float32(np.inf)), lower)  # not into the bin below
        table = np.where(np.isnan(table), table, lower[np.searchsorted(ends, table, "right")])
    return np.where(np.isnan(table), np.float32(DISCARDED), table)


class Values:
    """A table such as `epsilon_table`, and what bounds its entries, by numbers of false positives and of negatives."""

    def __init__(self, table: np.ndarray):
        self.wide, self.table, self._bounds = table.shape[1], table.ravel(), _largest_from(table).ravel()

    def of(self, false_positives: np.ndarray, false_negatives: np.ndarray) -> np.ndarray:
        return self.table.take(np.multiply(false_positives, self.wide, dtype=np.intp) + false_negatives)

    def at_most(self, false_positives: np.ndarray, false_negatives: np.ndarray) -> np.ndarray:
        """The largest of what has at least so many of either."""
        return self._bounds.take(np.multiply(false_positives, self.wide, dtype=np.intp) + false_negatives)


def _largest_from(table: np.ndarray) -> np.ndarray:
    """The largest entry with at least as many false positives and at least as many false negatives."""
    for axis in (0, 1):
        table = np.flip(np.maximum.accumulate(np.flip(table, axis), axis=axis), axis)
    return table


def too_tight(unlearned: np.ndarray, retrained: np.ndarray, spec: MetricSpec) -> np.ndarray:
    """Which examples (columns) have a smaller range below `range_ratio` of the larger one."""
    ranges = np.stack([np.ptp(unlearned, axis=0), np.ptp(retrained, axis=0)])
    small, large = ranges.min(axis=0), ranges.max(axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0, two constants, is NaN: not too tight
        return np.divide(small, large) < spec.range_ratio


def capped(best: np.ndarray, tight: np.ndarray, spec: MetricSpec) -> EpsilonResult:
    """The best table entry of each example -> its epsilon; no example is ever dropped."""
    discarded = (best == DISCARDED) & ~tight
    epsilon = np.where(discarded | tight, spec.cap, np.minimum(best, spec.cap)).astype(np.float64)
    return EpsilonResult(epsilon, discarded, tight)
