"""The grid form: the thresholds and windows of the released scoring code, counted instead of tiled.

The same thresholds in the same precision and the same comparisons as the released code. Of the 160,000 windows of an
example only those that may hold its best attack are counted. Where a confidence falls on the very end of a window, as
with values on a grid of 0.1, processors round that end differently: there epsilon may differ between machines, as the
released code's own does.

Branch and bound, many examples at once: neighbouring attacks are bounded together by the fewest errors that any of them
can make. If even an attack with so few would not be better than the best one known, none of them is. Of the blocks that
remain an attack in the middle is tried, which may rule out others; what is left is split, down to single attacks.
"""

from functools import lru_cache

import numpy as np

from kit.errors import InputError

from .checks import checked_samples
from .chunks import over_chunks
from .counts import Counts
from .epsilon import EpsilonResult, capped, epsilon_table, too_tight
from .spec import MetricSpec

_MOST_THRESHOLDS = 10_000_000
_BLOCKS = (32, 8, 2, 1)  # sides of the blocks of windows that are bounded together, each a multiple of the next
_THRESHOLDS = 32  # neighbouring thresholds that are bounded together
_THRESHOLDS_AT_ONCE = 4_000_000
_CHUNK = 64  # examples at once: the arrays stay inside a core's cache
_CELLS = 1024


def grid_epsilon(unlearned, retrained, spec: MetricSpec | None = None, n_threads: int | None = None) -> EpsilonResult:
    """Largest epsilon of each example over the released code's grid of thresholds and windows.

    unlearned (n_unlearned, n_examples) and retrained (n_retrained, n_examples): confidences. The released code
    needs equal numbers of models; here they may differ. Raises InputError, see `checked_samples`.
    """
    spec = spec or MetricSpec()
    unlearned, retrained = checked_samples(unlearned, retrained)
    widest = float(max(np.ptp(unlearned), np.ptp(retrained)))
    if widest * spec.grid_per_unit > _MOST_THRESHOLDS:
        raise InputError(
            f"confidences spread over {widest:.3g}: too many thresholds for the grid form, use the exact one"
        )
    table, bounds = _tables(len(retrained), len(unlearned), spec.delta)
    u_positive, r_positive = (table, bounds), (table.T, bounds.T)
    tight = too_tight(unlearned, retrained, spec)

    def job(examples: slice) -> np.ndarray:
        best = np.zeros(examples.stop - examples.start, np.float32)
        seen = np.flatnonzero(~tight[examples])
        u, r = (np.sort(sample[:, examples].T[seen], axis=1) for sample in (unlearned, retrained))
        u_has_larger_median = _medians(u) >= _medians(r)
        # The peaky sample has the smaller range; of equal ranges, the smaller median: the released code exchanges the
        # two where the range of the one with the larger median is not the smaller.
        range_u, range_r = u[:, -1] - u[:, 0], r[:, -1] - r[:, 0]
        r_is_peaky = np.where(u_has_larger_median, range_u >= range_r, range_u > range_r)
        found = np.full(len(seen), -np.inf, np.float32)
        for search, u_first in ((_best_single, u_has_larger_median), (_best_double, ~r_is_peaky)):
            for rows, positives, negatives, values in (
                (np.flatnonzero(u_first), u, r, u_positive),
                (np.flatnonzero(~u_first), r, u, r_positive),
            ):
                if len(rows):
                    found[rows] = search(positives[rows], negatives[rows], *values, spec, found[rows])
        best[seen] = found
        return best

    chunk = max(1, min(_CHUNK, int(_THRESHOLDS_AT_ONCE / max(1, widest * spec.grid_per_unit))))
    return capped(over_chunks(job, unlearned.shape[1], chunk, n_threads), tight, spec)


def _medians(ordered: np.ndarray) -> np.ndarray:
    n = ordered.shape[1]
    return (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2


@lru_cache(maxsize=4)
def _tables(n_negatives: int, n_positives: int, delta: float) -> tuple[np.ndarray, np.ndarray]:
    """`epsilon_table` and what bounds its entries, read-only: resamples ask for the same ones again and again."""
    table = epsilon_table(n_negatives, n_positives, delta)
    tables = table, _largest_from(table)
    for each in tables:
        each.flags.writeable = False
    return tables


def _largest_from(table: np.ndarray) -> np.ndarray:
    """The largest entry with at least as many false positives and at least as many false negatives."""
    for axis in (0, 1):
        table = np.flip(np.maximum.accumulate(np.flip(table, axis), axis=axis), axis)
    return table


def _best_single(
    positives: np.ndarray, negatives: np.ndarray, table: np.ndarray, bounds: np.ndarray, spec: MetricSpec, best
) -> np.ndarray:
    """Predict "positive", the sample with the larger median, when x >= t.

    positives, negatives: (n_rows, n_models), sorted by row; best (n_rows,), known from other attacks, is raised.
    """
    low, high = np.minimum(positives[:, 0], negatives[:, 0]), np.maximum(positives[:, -1], negatives[:, -1])
    thresholds = SingleThresholds(low, high, spec)
    of_positives, of_negatives = (Counts(sample, low, high, _CELLS) for sample in (positives, negatives))
    n_negatives = negatives.shape[1]

    def epsilon(row, number):
        t = thresholds.at(row, number).astype(np.float64)
        cells = of_positives.cells(row, t)
        return table[n_negatives - of_negatives.below(row, t, cells), of_positives.below(row, t, cells)]

    row, block = _ragged(-(-thresholds.n // _THRESHOLDS))
    first = block * _THRESHOLDS
    best = _raised(best, row, epsilon(row, first))
    last = np.minimum(first + _THRESHOLDS, thresholds.n[row]) - 1
    # the thresholds rise but for the rounding where their two halves meet
    slack = 4 * np.spacing(np.maximum(np.abs(thresholds.first), np.abs(thresholds.last))).astype(np.float64)[row]
    fewest_missed = of_positives.fewest(of_positives.cells(row, thresholds.at(row, first) - slack))
    fewest_false = n_negatives - of_negatives.most(of_negatives.cells(row, thresholds.at(row, last) + slack))
    promising = np.flatnonzero(bounds[fewest_false, fewest_missed] > best[row])
    row = np.repeat(row[promising], _THRESHOLDS)
    number = np.add.outer(first[promising], np.arange(_THRESHOLDS)).ravel()
    exist = number < thresholds.n[row]
    row, number = row[exist], number[exist]
    return _raised(best, row, epsilon(row, number))


def _best_double(
    positives: np.ndarray, negatives: np.ndarray, table: np.ndarray, bounds: np.ndarray, spec: MetricSpec, best
) -> np.ndarray:
    """Predict "positive", the sample with the smaller range, when l <= x <= r; arguments as in `_best_single`.

    Over a block of neighbouring right and left ends, the narrowest window holds the fewest negatives and the widest
    misses the fewest positives.
    """
    low, high = positives[:, 0], positives[:, -1]
    right, n_right = right_ends(low, high, spec)
    most = right.shape[1]
    rights_flat = right.ravel()
    left = LeftEnds(rights_flat, np.repeat(high - low, most), spec)
    n_positives, samples = positives.shape[1], (positives, negatives)
    reach = 2 * spec.grid_buffer
    positives_left, negatives_left = (Counts(sample, low - reach, low + reach, _CELLS) for sample in samples)
    reach = spec.grid_buffer
    positives_right, negatives_right = (Counts(sample, high - reach, high + reach, _CELLS) for sample in samples)

    def epsilon(row, line, column):
        end = row * most + line
        rights, lefts = rights_flat[end], left.at(end, column)
        at_right, at_left = positives_right.cells(row, rights), positives_left.cells(row, lefts)
        inside, false = (
            of_right.below(row, rights, at_right, np.less_equal) - of_left.below(row, lefts, at_left)
            for of_right, of_left in ((positives_right, positives_left), (negatives_right, negatives_left))
        )
        return table[np.maximum(false, 0), n_positives - np.maximum(inside, 0)]

    row, (line, column) = np.arange(len(right)), np.zeros((2, len(right)), np.intp)
    for size, part in zip((max(most, left.n), *_BLOCKS), _BLOCKS, strict=False):
        down, across = _corners(size, size, part)
        row = np.repeat(row, len(down))
        line, column = np.add.outer(line, down).ravel(), np.add.outer(column, across).ravel()
        exist = np.flatnonzero((line < n_right[row]) & (column < left.n))
        row, line, column = row[exist], line[exist], column[exist]
        if part == 1:
            return _raised(best, row, epsilon(row, line, column))
        end = row * most + line
        rights, lefts = rights_flat[end], left.at(end, column)
        last_end = row * most + np.minimum(line + part, n_right[row]) - 1
        last_rights, last_lefts = rights_flat[last_end], left.at(last_end, np.minimum(column + part, left.n) - 1)
        most_inside = positives_right.most(positives_right.cells(row, last_rights))
        most_inside -= positives_left.fewest(positives_left.cells(row, lefts))
        fewest_false = negatives_right.fewest(negatives_right.cells(row, rights))
        fewest_false -= negatives_left.most(negatives_left.cells(row, last_lefts))
        bound = bounds[np.maximum(fewest_false, 0), n_positives - np.maximum(most_inside, 0)]
        promising = np.flatnonzero(bound > best[row])
        row, line, column, bound = row[promising], line[promising], column[promising], bound[promising]
        middles = np.minimum(line + part // 2, n_right[row] - 1), np.minimum(column + part // 2, left.n - 1)
        best = _raised(best, row, epsilon(row, *middles))
        promising = np.flatnonzero(bound > best[row])
        row, line, column = row[promising], line[promising], column[promising]


def _raised(best: np.ndarray, row: np.ndarray, values: np.ndarray) -> np.ndarray:
    """best (n_rows,), or the largest value of the row where that is larger; row, of each value, is sorted."""
    if not len(row):
        return best
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    best, rows = best.copy(), row[starts]
    best[rows] = np.maximum(best[rows], np.maximum.reduceat(values, starts))
    return best


def _ragged(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of these lengths one behind the other: the row of each entry, and its number in the row."""
    row = np.repeat(np.arange(len(lengths)), lengths)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _corners(n_rows: int, n_columns: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns where blocks of size x size start."""
    rows, columns = np.arange(0, n_rows, size), np.arange(0, n_columns, size)
    return np.repeat(rows, len(columns)), np.tile(columns, len(rows))


class LeftEnds:
    """The left ends that go with each right end: n of them a row, laid out as np.linspace does.

    right (n_right,); width, of the sample, a number or (n_right,).
    """

    def __init__(self, right: np.ndarray, width: float | np.ndarray, spec: MetricSpec):
        self.n = int(np.ceil(2 * spec.grid_buffer * spec.grid_per_unit))
        self.first = right - width - spec.grid_buffer
        self.last = right - width + spec.grid_buffer
        self.step = (self.last - self.first) / (self.n - 1)

    def at(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return np.where(column == self.n - 1, self.last[row], column * self.step[row] + self.first[row])


def right_ends(lowest: np.ndarray, highest: np.ndarray, spec: MetricSpec) -> tuple[np.ndarray, np.ndarray]:
    """Right ends of the windows around samples that reach from lowest to highest (n_rows,), laid out as np.linspace
    does: (n_rows, the largest number of them), and how many each row has; what lies behind is no end."""
    first = lowest + (highest - lowest) - spec.grid_buffer
    last = highest + spec.grid_buffer
    n = np.ceil((last - first) * spec.grid_per_unit).astype(np.intp)
    step = (last - first) / np.maximum(n - 1, 1)
    right = np.arange(n.max()) * step[:, None] + first[:, None]
    right[np.arange(len(n)), n - 1] = last
    return right, n


class SingleThresholds:
    """Single thresholds from the lowest to the highest confidence of each row, n (n_rows,) of them: float32, laid out
    from both ends."""

    def __init__(self, lowest: np.ndarray, highest: np.ndarray, spec: MetricSpec):
        self.n = np.ceil((highest - lowest) * spec.grid_per_unit).astype(np.intp)
        self.first, self.last = lowest.astype(np.float32), highest.astype(np.float32)
        self.step = (self.last - self.first) / np.maximum(self.n - 1, 1).astype(np.float32)

    def at(self, row: np.ndarray, number: np.ndarray) -> np.ndarray:
        n, step = self.n[row], self.step[row]
        from_first = self.first[row] + step * number.astype(np.float32)
        from_last = self.last[row] - step * (n - 1 - number).astype(np.float32)
        return np.where((number < n // 2) | (n < 2), from_first, from_last)
