"""The exact form: the supremum of epsilon over every threshold and every window.

An attack predicts "positive" for l <= x <= r, with either sample as the positive one; single thresholds are the
windows with an infinite end, and a window's complement is the same window with the samples exchanged. Epsilon
falls with both error counts, so for each number of negatives in a window only the most positives matter.
"""

from collections.abc import Sequence

import numpy as np

from .checks import checked_samples
from .chunks import over_chunks
from .epsilon import DISCARDED, EpsilonResult, capped, epsilon_table, too_tight
from .spec import MetricSpec


def exact_epsilon(
    unlearned,
    retrained,
    spec: MetricSpec | None = None,
    n_workers: int | None = None,
    *,
    ends: Sequence[float] = (),
) -> EpsilonResult:
    """Largest epsilon of each example over all closed windows and thresholds, ties included.

    unlearned (n_unlearned, n_examples) and retrained (n_retrained, n_examples): confidences.
    O(n_unlearned * n_retrained) integer operations an example. ends: as in `epsilon_table`. Raises InputError, see
    `checked_samples`.
    """
    spec = spec or MetricSpec()
    unlearned, retrained = checked_samples(unlearned, retrained)
    table = epsilon_table(len(retrained), len(unlearned), spec.delta, ends)

    def job(examples: slice) -> np.ndarray:
        both = np.concatenate([unlearned[:, examples].T, retrained[:, examples].T], axis=1)
        order = np.argsort(both, axis=1)
        is_unlearned = order < len(unlearned)
        values = np.take_along_axis(both, order, axis=1)
        return np.maximum(_best_window(values, is_unlearned, table), _best_window(values, ~is_unlearned, table.T))

    # chunks that keep the pass inside a core's cache
    chunk = max(16, min(512, 2**18 // max(len(unlearned), len(retrained))))
    best = over_chunks(job, unlearned.shape[1], chunk, n_workers)
    return capped(best, too_tight(unlearned, retrained, spec), spec)


def _best_window(values: np.ndarray, is_positive: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Best epsilon of each row over the windows that predict "positive" inside.

    values (n_rows, n_positives + n_negatives) sorted by row, is_positive beside it, and
    table[false positives, false negatives].
    """
    n_rows, (n_negatives, n_positives) = len(values), (n - 1 for n in table.shape)
    at_positives, at_negatives = np.flatnonzero(is_positive), np.flatnonzero(~is_positive)
    positives = values.take(at_positives).reshape(n_rows, n_positives)
    negatives = values.take(at_negatives).reshape(n_rows, n_negatives)
    below, up_to = (n.take(at_negatives).reshape(n_rows, n_negatives) for n in _positives_around(values, is_positive))

    misses = _fewest_misses(below, up_to, negatives, n_positives)  # row b - 1: windows with b negatives
    none = np.full((n_negatives + 1, 1), DISCARDED, table.dtype)  # column n_positives + 1: no such window
    best = np.take_along_axis(np.hstack([table, none])[1:], misses.astype(np.intp), axis=1).max(axis=0)

    # What the pass left out: windows around all positives, and those that just leave out one end of them.
    inside = (below < n_positives).sum(axis=1) - (up_to == 0).sum(axis=1)  # negatives in the positives' range
    best[inside == 0] = np.inf  # separated
    for end, tied in (
        (positives[:, :1], (below == 0) & (up_to > 0)),
        (positives[:, -1:], (below < n_positives) & (up_to == n_positives)),
    ):
        # A negative equal to the end would leave the window with it: the pass has seen that window.
        possible = (inside > 0) & ~tied.any(axis=1)
        left_out = (positives == end).sum(axis=1)
        best = np.where(possible, np.maximum(best, table[inside, left_out]), best)
    return best


def _positives_around(values: np.ndarray, is_positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many positives of the row are below each value, and how many are not above it."""
    up_to = np.cumsum(is_positive, axis=1, dtype=np.int32)
    below = up_to - is_positive
    same = values[:, 1:] == values[:, :-1]
    if same.any():  # of equal values the first knows how many are below, the last how many are not above
        below[:, 1:][same] = 0
        below = np.maximum.accumulate(below, axis=1)
        up_to[:, :-1][same] = values.shape[1]
        up_to = np.minimum.accumulate(up_to[:, ::-1], axis=1)[:, ::-1]
    return below, up_to


def _fewest_misses(below: np.ndarray, up_to: np.ndarray, negatives: np.ndarray, n_positives: int) -> np.ndarray:
    """For b = 1..n_negatives and each row: the fewest positives, but at least one, outside a window that holds
    exactly b negatives; n_positives + 1 where there is no such window. Returns (n_negatives, n_rows).

    The widest window around negatives j..j+b-1 ends just inside negatives j-1 and j+b, so it holds
    below[j+b] - up_to[j-1] positives. Windows without a miss are discarded attacks: as misses minus one in
    unsigned integers they wrap to the largest number and so never are the minimum.
    """
    n_rows, n_negatives = negatives.shape
    dtype = np.uint16 if 8 * max(n_positives, n_negatives) < 2**16 else np.uint32
    left = np.full((n_negatives + 1, n_rows), n_positives - 1, np.int32)
    left[1:] += up_to.T
    right = np.full((n_negatives + 1, n_rows), n_positives, np.int32)
    right[:-1] = below.T
    splits_ties = (negatives[:, 1:] == negatives[:, :-1]).T  # no window ends between equal negatives
    left[1:-1][splits_ties] = 4 * n_positives
    right[1:-1][splits_ties] = -3 * n_positives
    left, right = left.astype(dtype), right.astype(dtype)  # below zero they wrap, and back when subtracted
    misses = np.empty((n_negatives, n_rows), dtype)
    buffer = np.empty_like(left)
    for b in range(1, n_negatives + 1):
        window = buffer[: n_negatives + 1 - b]
        np.subtract(left[: n_negatives + 1 - b], right[b:], out=window)
        np.minimum.reduce(window, axis=0, out=misses[b - 1])
    return np.minimum(misses, dtype(n_positives)) + dtype(1)
