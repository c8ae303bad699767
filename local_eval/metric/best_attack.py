"""The attack behind an epsilon, for reports: computed one example at a time, when asked for."""

from dataclasses import dataclass

import numpy as np

from .checks import checked_samples
from .epsilon import DISCARDED, Values, epsilon_table
from .spec import MetricSpec

_SIDE = 16  # of the blocks of windows that are bounded together
_BEFORE = np.tri(_SIDE, k=-1, dtype=bool)  # windows that would end before they begin


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
    unlearned, retrained, spec: MetricSpec | None = None, values: Values | None = None
) -> WindowAttack | None:
    """The window or threshold with the largest epsilon for one example; None when every one is discarded.

    unlearned (n_unlearned,), retrained (n_retrained,). Epsilon is that of `exact_epsilon` before the range rule. Of
    equal attacks, single thresholds first. values: of attacks by their counts, where these are no epsilons, the same
    with the samples exchanged.
    """
    spec = spec or MetricSpec()
    unlearned, retrained = checked_samples(np.reshape(unlearned, (-1, 1)), np.reshape(retrained, (-1, 1)))
    unlearned, retrained = np.sort(unlearned[:, 0]), np.sort(retrained[:, 0])
    ends = np.unique(np.concatenate([unlearned, retrained]))
    n_u, n_r = len(unlearned), len(retrained)
    values = values or Values(epsilon_table(n_r, n_u, spec.delta))
    below_u, below_r = (sample.searchsorted(ends) for sample in (unlearned, retrained))
    up_to_u, up_to_r = (sample.searchsorted(ends, "right") for sample in (unlearned, retrained))
    wide, found = values.wide, None
    # a window's place in the table: what its last value adds, less what is below its first
    of_unlearned = n_u, up_to_r * wide - up_to_u + n_u, below_r * wide - below_u
    of_retrained = n_r * wide, n_r * wide - up_to_r * wide + up_to_u, below_u - below_r * wide
    for inside_is_unlearned, (empty, last, first) in ((True, of_unlearned), (False, of_retrained)):
        epsilon, i, j = _best_window(first, last, empty, values)
        value = min(float(epsilon), spec.cap)
        if value == DISCARDED:
            continue
        share_u, share_r = (up_to_u[j] - below_u[i]) / n_u, (up_to_r[j] - below_r[i]) / n_r
        attack = WindowAttack(
            epsilon=value,
            lo=-np.inf if i == 0 else float(ends[i]),
            hi=np.inf if j == len(ends) - 1 else float(ends[j]),
            inside_is_unlearned=inside_is_unlearned,
            fpr=share_r if inside_is_unlearned else share_u,
            fnr=1 - (share_u if inside_is_unlearned else share_r),
        )
        if found is None or (attack.epsilon, attack.kind == "single") > (found.epsilon, found.kind == "single"):
            found = attack
    return found


def _best_window(first: np.ndarray, last: np.ndarray, empty: int, values: Values) -> tuple[float, int, int]:
    """The largest values.table[last[j] - first[i]] of all i <= j, with i and j: of equal ones a single threshold's, the
    first. empty: the place in the table of a window without a value.

    Neighbouring ends are bounded together, as in the grid form: of all windows of a block the widest and the narrowest
    make the fewest errors of either kind. Blocks that cannot hold a better one than the widest of any are left out.
    """
    n = len(first)
    firsts, lasts = (np.append(some, np.full(-n % _SIDE, some[-1])).reshape(-1, _SIDE) for some in (first, last))
    row, column = np.triu_indices(len(firsts))
    wide, narrow = lasts[column, -1] - firsts[row, 0], lasts[column, 0] - firsts[row, -1]
    narrow[row == column] = empty
    fewest = map(np.minimum, np.divmod(wide, values.wide), np.divmod(narrow, values.wide))
    kept = np.flatnonzero(values.at_most(*fewest) >= values.table[wide].max())
    row, column = row[kept], column[kept]
    epsilon = values.table.take(lasts[column][:, None] - firsts[row][:, :, None], mode="clip")
    epsilon[row == column] = np.where(_BEFORE, -np.inf, epsilon[row == column])
    block, i, j = np.unravel_index(np.flatnonzero(epsilon == epsilon.max()), epsilon.shape)
    i, j = (np.minimum(_SIDE * blocks[block] + some, n - 1) for blocks, some in ((row, i), (column, j)))
    k = np.lexsort((j, i, (i > 0) & (j < n - 1)))[0]
    return epsilon.max(), i[k], j[k]
