"""The attack behind an epsilon, for reports: computed one example at a time, when asked for."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .checks import checked_samples
from .epsilon import DISCARDED, epsilon_table
from .spec import MetricSpec


@dataclass(frozen=True)
class WindowAttack:
    """Predict one sample when lo <= x <= hi, the other one outside; infinite ends make a single threshold.

    fpr: share of the other sample inside; fnr: share of the predicted sample outside.
    """

    epsilon: float
    lo: float
    hi: float
    inside_is_unlearned: bool
    fpr: float
    fnr: float

    @property
    def kind(self) -> str:
        return "single" if np.isinf(self.lo) or np.isinf(self.hi) else "window"


def best_attack(
    unlearned, retrained, spec: MetricSpec | None = None, table: np.ndarray | None = None
) -> WindowAttack | None:
    """The window or threshold with the largest epsilon for one example; None when every one is discarded.

    unlearned (n_unlearned,), retrained (n_retrained,). Every pair of ends is looked at: O((n + m)^2) time and
    memory. Epsilon is that of `exact_epsilon` before the range rule. Of equal attacks, single thresholds first.
    table: another value of an attack by its counts, as in `epsilon_table`, that is the same with the samples exchanged.
    """
    spec = spec or MetricSpec()
    unlearned, retrained = checked_samples(np.reshape(unlearned, (-1, 1)), np.reshape(retrained, (-1, 1)))
    unlearned, retrained = np.sort(unlearned[:, 0]), np.sort(retrained[:, 0])
    values = np.unique(np.concatenate([unlearned, retrained]))
    n_u, n_r = len(unlearned), len(retrained)
    if table is None:
        table = epsilon_table(n_r, n_u, spec.delta)
    first, last, single = _windows(len(values))
    in_u = unlearned.searchsorted(values, "right")[last] - unlearned.searchsorted(values)[first]
    in_r = retrained.searchsorted(values, "right")[last] - retrained.searchsorted(values)[first]
    found = None
    for inside_is_unlearned, epsilon in ((True, table[in_r, n_u - in_u]), (False, table[n_r - in_r, in_u])):
        best_ones = np.flatnonzero(epsilon == epsilon.max())
        best = best_ones[np.argmax(single[best_ones])]
        value = min(float(epsilon[best]), spec.cap)
        if value == DISCARDED:
            continue
        i, j = first[best], last[best]
        share_u, share_r = in_u[best] / n_u, in_r[best] / n_r
        attack = WindowAttack(
            epsilon=value,
            lo=-np.inf if i == 0 else float(values[i]),
            hi=np.inf if j == len(values) - 1 else float(values[j]),
            inside_is_unlearned=inside_is_unlearned,
            fpr=share_r if inside_is_unlearned else share_u,
            fnr=1 - (share_u if inside_is_unlearned else share_r),
        )
        if found is None or (attack.epsilon, attack.kind == "single") > (found.epsilon, found.kind == "single"):
            found = attack
    return found


@lru_cache(maxsize=2)  # samples of one size have, but for ties, as many values in every example
def _windows(n_values: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first and the last value inside every window, and whether it is a single threshold."""
    first, last = np.triu_indices(n_values)
    return first, last, (first == 0) | (last == n_values - 1)
