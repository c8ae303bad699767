"""The grid form: the thresholds and windows of the released scoring code, counted instead of tiled.

The same thresholds in the same precision and the same comparisons as the released code. Of the 160,000 windows of an
example only those that may hold its best attack are counted. Where a confidence falls on the very end of a window, as
with values on a grid of 0.1, processors round that end differently: there epsilon may differ between machines, as the
released code's own does.
"""

import numpy as np

from kit.errors import InputError

from .checks import checked_samples
from .epsilon import EpsilonResult, capped, epsilon_table, too_tight
from .spec import MetricSpec

_MOST_THRESHOLDS = 10_000_000
_BLOCKS = (16, 4, 1)  # sides of the blocks of windows that are bounded together, each a multiple of the next


def grid_epsilon(unlearned, retrained, spec: MetricSpec | None = None) -> EpsilonResult:
    """Largest epsilon of each example over the released code's grid of thresholds and windows.

    unlearned (n_unlearned, n_examples) and retrained (n_retrained, n_examples): confidences. The released code
    needs equal numbers of models; here they may differ. One thread: the calls of an example are short, and threads
    would spend their time handing the interpreter's lock around. Raises InputError, see `checked_samples`.
    """
    spec = spec or MetricSpec()
    unlearned, retrained = checked_samples(unlearned, retrained)
    widest = float(max(np.ptp(unlearned), np.ptp(retrained)))
    if widest * spec.grid_per_unit > _MOST_THRESHOLDS:
        raise InputError(
            f"confidences spread over {widest:.3g}: too many thresholds for the grid form, use the exact one"
        )
    table = epsilon_table(len(retrained), len(unlearned), spec.delta)
    bounds = _largest_from(table)
    u_has_larger_median = np.median(unlearned, axis=0) >= np.median(retrained, axis=0)
    tight = too_tight(unlearned, retrained, spec)
    # The peaky sample has the smaller range; of equal ranges, the smaller median: the released code exchanges the two
    # where the range of the one with the larger median is not the smaller.
    range_u, range_r = np.ptp(unlearned, axis=0), np.ptp(retrained, axis=0)
    r_is_peaky = np.where(u_has_larger_median, range_u >= range_r, range_u > range_r)

    best = np.zeros(unlearned.shape[1], np.float32)
    for example in np.flatnonzero(~tight):
        u, r = np.sort(unlearned[:, example]), np.sort(retrained[:, example])
        u_positive, r_positive = (u, r, table, bounds), (r, u, table.T, bounds.T)
        best_single = _best_single(*(u_positive if u_has_larger_median[example] else r_positive)[:3], spec)
        best[example] = _best_double(*(r_positive if r_is_peaky[example] else u_positive), spec, best_single)
    return capped(best, tight, spec)


def _largest_from(table: np.ndarray) -> np.ndarray:
    """The largest entry with at least as many false positives and at least as many false negatives."""
    for axis in (0, 1):
        table = np.flip(np.maximum.accumulate(np.flip(table, axis), axis=axis), axis)
    return table


def _best_single(positives: np.ndarray, negatives: np.ndarray, table: np.ndarray, spec: MetricSpec) -> float:
    """Predict "positive", the sample with the larger median, when x >= t. Both samples sorted."""
    t = single_thresholds(min(positives[0], negatives[0]), max(positives[-1], negatives[-1]), spec)
    if not len(t):
        return -np.inf
    false_positives = len(negatives) - negatives.searchsorted(t)
    false_negatives = positives.searchsorted(t)
    return table[false_positives, false_negatives].max()


def _best_double(
    positives: np.ndarray,
    negatives: np.ndarray,
    table: np.ndarray,
    bounds: np.ndarray,
    spec: MetricSpec,
    best: float,
) -> float:
    """Predict "positive", the sample with the smaller range, when l <= x <= r; best is known from other attacks.

    Branch and bound. Over a block of neighbouring right and left ends, the narrowest window holds the fewest
    negatives and the widest misses the fewest positives: if even an attack with both would not be better than the best
    one known, no window of the block is. Blocks that remain are split, down to single windows.
    """
    right = right_ends(positives[0], positives[-1], spec)
    left = LeftEnds(right, positives[-1] - positives[0], spec)
    both = np.sort(np.concatenate([positives, negatives]))
    values = np.append(both, np.inf)
    positives_below, negatives_below = positives.searchsorted(values), negatives.searchsorted(values)
    up_to_right = both.searchsorted(right, "right")

    def inside(below_left, below_right, n_below):
        """How many of a sample a window holds, from how many values of both lie below its ends."""
        return n_below[below_right] - n_below[np.minimum(below_left, below_right)]

    row, column = _corners(len(right), left.n, _BLOCKS[0])
    for size, part in zip(_BLOCKS, (*_BLOCKS[1:], 1), strict=True):
        below = both.searchsorted(left.at(row, column))
        false_positives = inside(below, up_to_right[row], negatives_below)
        false_negatives = len(positives) - inside(below, up_to_right[row], positives_below)
        best = max(best, table[false_positives, false_negatives].max())  # the windows in the blocks' first corners
        if size == 1:
            return best
        last_row, last_column = np.minimum(row + size, len(right)) - 1, np.minimum(column + size, left.n) - 1
        below_last = both.searchsorted(left.at(last_row, last_column))
        fewest_false_positives = inside(below_last, up_to_right[row], negatives_below)
        fewest_false_negatives = len(positives) - inside(below, up_to_right[last_row], positives_below)
        promising = bounds[fewest_false_positives, fewest_false_negatives] > best
        down, across = _corners(size, size, part)
        row, column = np.add.outer(row[promising], down).ravel(), np.add.outer(column[promising], across).ravel()
        exist = (row < len(right)) & (column < left.n)
        row, column = row[exist], column[exist]
        if not len(row):
            return best
    return best


def _corners(n_rows: int, n_columns: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns where blocks of size x size start."""
    rows, columns = np.arange(0, n_rows, size), np.arange(0, n_columns, size)
    return np.repeat(rows, len(columns)), np.tile(columns, len(rows))


class LeftEnds:
    """The left ends that go with each right end: n of them a row, laid out as np.linspace does."""

    def __init__(self, right: np.ndarray, width: float, spec: MetricSpec):
        self.n = int(np.ceil(2 * spec.grid_buffer * spec.grid_per_unit))
        self.first = right - width - spec.grid_buffer
        self.last = right - width + spec.grid_buffer
        self.step = (self.last - self.first) / (self.n - 1)

    def at(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return np.where(column == self.n - 1, self.last[row], column * self.step[row] + self.first[row])


def right_ends(lowest: float, highest: float, spec: MetricSpec) -> np.ndarray:
    """Right ends (n_right,) of the windows around a sample that reaches from lowest to highest."""
    first = lowest + (highest - lowest) - spec.grid_buffer
    last = highest + spec.grid_buffer
    return np.linspace(first, last, int(np.ceil((last - first) * spec.grid_per_unit)))


def single_thresholds(lowest: float, highest: float, spec: MetricSpec) -> np.ndarray:
    """Single thresholds from the lowest to the highest confidence: float32, laid out from both ends."""
    n = int(np.ceil((highest - lowest) * spec.grid_per_unit))
    first, last = np.float32(lowest), np.float32(highest)
    if n < 2:
        return np.full(n, first)
    step = (last - first) / np.float32(n - 1)
    i = np.arange(n, dtype=np.float32)
    half = n // 2
    return np.concatenate([first + step * i[:half], last - step * i[: n - half][::-1]])
