"""The attack behind an epsilon, for reports: computed one example at a time, when asked for."""

from dataclasses import dataclass

import numpy as np

from .checks import checked_samples
from .epsilon import DISCARDED, epsilon_table
from .spec import MetricSpec

_ROWS = 64
_BEFORE = np.tri(_ROWS, k=-1, dtype=bool)  # windows that would end before they begin


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
    below_u, below_r = (sample.searchsorted(values) for sample in (unlearned, retrained))
    up_to_u, up_to_r = (sample.searchsorted(values, "right") for sample in (unlearned, retrained))
    wide, found = n_u + 1, None
    # a window's place in the table: what its last value adds, less what is below its first
    of_unlearned = up_to_r * wide - up_to_u + n_u, below_r * wide - below_u
    of_retrained = n_r * wide - up_to_r * wide + up_to_u, below_u - below_r * wide
    for inside_is_unlearned, (last, first) in ((True, of_unlearned), (False, of_retrained)):
        epsilon, i, j = _best_window(first, last, table.ravel())
        value = min(float(epsilon), spec.cap)
        if value == DISCARDED:
            continue
        share_u, share_r = (up_to_u[j] - below_u[i]) / n_u, (up_to_r[j] - below_r[i]) / n_r
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


def _best_window(first: np.ndarray, last: np.ndarray, table: np.ndarray) -> tuple[float, int, int]:
    """The largest table[last[j] - first[i]] of all i <= j, with i and j: of equal ones a single threshold's, the first.

    Rows of windows at a time stay inside a core's cache.
    """
    best, n = (-np.inf, False, 0, 0), len(first)
    for start in range(0, n, _ROWS):
        rows = slice(start, min(start + _ROWS, n))
        epsilon = table.take(last[start:] - first[rows, None], mode="clip")
        epsilon[:, : len(epsilon)][_BEFORE[: len(epsilon), : len(epsilon)]] = -np.inf
        i, j = np.divmod(np.flatnonzero(epsilon == epsilon.max()), epsilon.shape[1])
        is_single = (i + start == 0) | (j + start == n - 1)
        k = np.argmax(is_single)
        if (epsilon[i[k], j[k]], is_single[k]) > best[:2]:
            best = epsilon[i[k], j[k]], is_single[k], i[k] + start, j[k] + start
    return best[0], best[2], best[3]
