"""The grid form: the thresholds and windows of the released scoring code, counted instead of tiled.

The same thresholds in the same precision and the same comparisons as the released code. Of the 160,000 windows of an
example only those that may hold its best attack are counted. Where a confidence falls on the very end of a window, as
with values on a grid of 0.1, processors round that end differently: there epsilon may differ between machines, as the
released code's own does.

Branch and bound, many examples at once: neighbouring attacks are bounded together by the fewest errors that any of them
can make. If even an attack with so few would not be better than the best one known, none of them is. Of the blocks that
remain an attack in the middle is tried, which may rule out others; what is left is split, down to single attacks.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from kit.errors import InputError

from .checks import checked_samples
from .chunks import over_chunks
from .counts import Counts
from .epsilon import EpsilonResult, Values, capped, epsilon_table, too_tight
from .spec import MetricSpec

_MOST_THRESHOLDS = 10_000_000
_BLOCKS = (32, 16, 8, 4, 2, 1)  # sides of the blocks of windows that are bounded together, each a multiple of the next
_THRESHOLDS = 32  # neighbouring thresholds that are bounded together
_THRESHOLDS_AT_ONCE = 4_000_000
_CHUNK = 64  # examples at once: the arrays stay inside a core's cache
_POINTS = 1024  # at most, at which the values below are counted for single thresholds
_ROUNDING = 32  # times the spacing of numbers: so far may what is laid out evenly lie from its place
_APART = 1e-6  # of a step: as much, where two ways of laying out meet


def grid_epsilon(
    unlearned,
    retrained,
    spec: MetricSpec | None = None,
    n_workers: int | None = None,
    *,
    ends: Sequence[float] = (),
) -> EpsilonResult:
    """Largest epsilon of each example over the released code's grid of thresholds and windows.

    unlearned (n_unlearned, n_examples) and retrained (n_retrained, n_examples): confidences. The released code
    needs equal numbers of models; here they may differ. ends: as in `epsilon_table`; more attacks are ruled out then.
    Raises InputError, see `checked_samples`.
    """
    spec = spec or MetricSpec()
    unlearned, retrained = checked_samples(unlearned, retrained)
    widest = float(max(np.ptp(unlearned), np.ptp(retrained)))
    if widest * spec.grid_per_unit > _MOST_THRESHOLDS:
        raise InputError(
            f"confidences spread over {widest:.3g}: too many thresholds for the grid form, use the exact one"
        )
    n_u, n_r = len(unlearned), len(retrained)
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
            if n_u == n_r:  # all rows at once
                parts = [(np.arange(len(seen)), np.where(u_first[:, None], u, r), np.where(u_first[:, None], r, u))]
            else:
                rows = [np.flatnonzero(some) for some in (u_first, ~u_first)]
                parts = [(rows[0], u[rows[0]], r[rows[0]]), (rows[1], r[rows[1]], u[rows[1]])]
            for rows, positives, negatives in parts:
                if len(rows):
                    values = _values(negatives.shape[1], positives.shape[1], spec.delta, tuple(ends))
                    found[rows] = search(positives, negatives, values, spec, found[rows])
        best[seen] = found
        return best

    chunk = max(1, min(_CHUNK, int(_THRESHOLDS_AT_ONCE / max(1, widest * spec.grid_per_unit))))
    return capped(over_chunks(job, unlearned.shape[1], chunk, n_workers), tight, spec)


def _medians(ordered: np.ndarray) -> np.ndarray:
    n = ordered.shape[1]
    return (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2


@lru_cache(maxsize=8)  # resamples ask for the same ones again and again
def _values(n_negatives: int, n_positives: int, delta: float, ends: Sequence[float]) -> Values:
    return Values(epsilon_table(n_negatives, n_positives, delta, ends))


def _best_single(
    positives: np.ndarray, negatives: np.ndarray, values: Values, spec: MetricSpec, best: np.ndarray
) -> np.ndarray:
    """Predict "positive", the sample with the larger median, when x >= t.

    positives, negatives: (n_rows, n_models), sorted by row; best (n_rows,), known from other attacks, is raised.
    """
    low, high = np.minimum(positives[:, 0], negatives[:, 0]), np.maximum(positives[:, -1], negatives[:, -1])
    thresholds = SingleThresholds(low, high, spec)
    every = -(-thresholds.n // _POINTS)  # so many thresholds a point where there are very many
    spacing = np.spacing(np.maximum(np.abs(thresholds.first), np.abs(thresholds.last))).astype(np.float64)
    n_points = int((thresholds.n // np.maximum(every, 1)).max()) + 3
    of_positives, of_negatives = (
        Counts(sample, low, thresholds.step * every, n_points, _ROUNDING * spacing) for sample in (positives, negatives)
    )
    n_negatives = negatives.shape[1]

    def around(row, number):
        """The points at or before each threshold, and at or behind it."""
        begin = row * n_points
        return begin + number // every[row], begin - -number // every[row]

    def epsilon(row, number):
        points, at = around(row, number), lambda some: thresholds.at(row[some], number[some]).astype(np.float64)
        missed, true = (sample.below(row, at, *points) for sample in (of_positives, of_negatives))
        return values.of(n_negatives - true, missed)

    row, block = _ragged(-(-thresholds.n // _THRESHOLDS))
    first = block * _THRESHOLDS
    best = _raised(best, row, epsilon(row, first))
    last = np.minimum(first + _THRESHOLDS, thresholds.n[row]) - 1
    fewest_missed = of_positives.fewest.take(around(row, first)[0])
    fewest_false = n_negatives - of_negatives.most.take(around(row, last)[1])
    promising = np.flatnonzero(values.at_most(fewest_false, fewest_missed) > best[row])
    row = np.repeat(row[promising], _THRESHOLDS)
    number = np.add.outer(first[promising], np.arange(_THRESHOLDS)).ravel()
    exist = number < thresholds.n[row]
    row, number = row[exist], number[exist]
    return _raised(best, row, epsilon(row, number))


def _best_double(
    positives: np.ndarray, negatives: np.ndarray, values: Values, spec: MetricSpec, best: np.ndarray
) -> np.ndarray:
    """Predict "positive", the sample with the smaller range, when l <= x <= r; arguments as in `_best_single`.

    Over a block of neighbouring right and left ends, the narrowest window holds the fewest negatives and the widest
    misses the fewest positives.
    """
    low, high = positives[:, 0], positives[:, -1]
    ends, n_right = right_ends(low, high, spec)
    n_rows, n_ends = ends.shape
    right = ends.ravel()
    left = LeftEnds(right, np.repeat(high - low, n_ends), spec)
    near = _ROUNDING * np.spacing(np.maximum(np.abs(low), np.abs(high)) + 2 * spec.grid_buffer)
    n_positives, samples = positives.shape[1], (positives, negatives)

    row, number = _ragged(np.full(n_rows, n_ends))
    right_step = (ends[np.arange(n_rows), n_right - 1] - ends[:, 0]) / np.maximum(n_right - 1, 1)
    point = row * (n_ends + 1) + number
    inside_up_to, false_up_to = (
        Counts(sample, ends[:, 0], right_step, n_ends + 1, near).below(row, right.take, point, point, np.less_equal)
        for sample in samples
    )
    # Left ends lie evenly too, and where a row has as many right ends as left ones, at the same points for all of them.
    first, left_step = left.first[::n_ends], (left.last - left.first)[::n_ends] / (left.n - 1)
    alike = n_right == left.n
    moved = number * np.where(alike, 1.0, right_step / left_step)[row]
    apart = np.where(alike, 0.0, _APART)[row]
    before, behind = np.floor(moved - apart).astype(np.intp), np.ceil(moved + apart).astype(np.intp)
    n_points = int(behind.max()) + left.n + 1
    inside_below, false_below = (Counts(sample, first, left_step, n_points, near) for sample in samples)
    before, behind = np.maximum(before, 0) + row * n_points, behind + row * n_points

    def epsilon(row, line, column):
        end = row * n_ends + line
        around = before.take(end) + column, behind.take(end) + column
        inside, false = (
            up_to.take(end) - below.below(row, lambda some: left.at(end[some], column[some]), *around)
            for up_to, below in ((inside_up_to, inside_below), (false_up_to, false_below))
        )
        return values.of(np.maximum(false, 0), n_positives - np.maximum(inside, 0))

    row, (line, column) = np.arange(n_rows), np.zeros((2, n_rows), np.intp)
    for size, part in zip((max(n_ends, left.n), *_BLOCKS), _BLOCKS, strict=False):
        down, across = _corners(size, size, part)
        row = np.repeat(row, len(down))
        line, column = np.add.outer(line, down).ravel(), np.add.outer(column, across).ravel()
        exist = np.flatnonzero((line < n_right[row]) & (column < left.n))
        row, line, column = row[exist], line[exist], column[exist]
        if part == 1:
            return _raised(best, row, epsilon(row, line, column))
        end, last_end = row * n_ends + line, row * n_ends + np.minimum(line + part, n_right[row]) - 1
        last_column = np.minimum(column + part, left.n) - 1
        most_inside = inside_up_to.take(last_end) - inside_below.fewest.take(before.take(end) + column)
        fewest_false = false_up_to.take(end) - false_below.most.take(behind.take(last_end) + last_column)
        bound = values.at_most(np.maximum(fewest_false, 0), n_positives - np.maximum(most_inside, 0))
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
