"""The grid form: the thresholds and windows of the released scoring code, counted instead of tiled.

Equal to the released code to the bit: the same thresholds in the same precision, the same comparisons.
"""

from collections.abc import Callable

import numpy as np

from kit.errors import InputError

from .checks import checked_samples
from .chunks import over_chunks
from .epsilon import EpsilonResult, capped, epsilon_table, too_tight
from .spec import MetricSpec

_N_ROWS = 100  # windows in blocks of this many right ends stay in a core's cache
_N_BUCKETS = 1 << 14
_MOST_THRESHOLDS = 10_000_000


def grid_epsilon(unlearned, retrained, spec: MetricSpec | None = None, n_threads: int | None = None) -> EpsilonResult:
    """Largest epsilon of each example over the released code's grid of thresholds and windows.

    unlearned (n_unlearned, n_examples) and retrained (n_retrained, n_examples): confidences. The released code
    needs equal numbers of models; here they may differ. Raises InputError, see `checked_samples`.
    """
    spec = spec or MetricSpec()
    unlearned, retrained = checked_samples(unlearned, retrained)
    table = epsilon_table(len(retrained), len(unlearned), spec.delta)
    mirrored = np.ascontiguousarray(table.T)  # the same with the samples exchanged
    u_has_larger_median = np.median(unlearned, axis=0) >= np.median(retrained, axis=0)
    tight = too_tight(unlearned, retrained, spec)

    widest = float(max(np.ptp(unlearned), np.ptp(retrained)))
    if widest * spec.grid_per_unit > _MOST_THRESHOLDS:
        raise InputError(
            f"confidences spread over {widest:.3g}: too many thresholds for the grid form, use the exact one"
        )

    def job(examples: slice) -> np.ndarray:
        best = np.zeros(examples.stop - examples.start, np.float32)
        for i, example in enumerate(range(examples.start, examples.stop)):
            if tight[example]:
                continue
            u, r = np.sort(unlearned[:, example]), np.sort(retrained[:, example])
            u_is_positive, r_is_positive = (u, r, table), (r, u, mirrored)
            best[i] = max(
                _best_single(*(u_is_positive if u_has_larger_median[example] else r_is_positive), spec),
                _best_double(*(r_is_positive if np.ptp(u) >= np.ptp(r) else u_is_positive), spec),
            )
        return best

    best = over_chunks(job, unlearned.shape[1], 16, n_threads)
    return capped(best, tight, spec)


def _best_single(positives: np.ndarray, negatives: np.ndarray, table: np.ndarray, spec: MetricSpec) -> float:
    """Predict "positive", the sample with the larger median, when x >= t. Both samples sorted."""
    t = single_thresholds(min(positives[0], negatives[0]), max(positives[-1], negatives[-1]), spec)
    if not len(t):
        return -np.inf
    false_positives = len(negatives) - negatives.searchsorted(t)
    false_negatives = positives.searchsorted(t)
    return table[false_positives, false_negatives].max()


def _best_double(positives: np.ndarray, negatives: np.ndarray, table: np.ndarray, spec: MetricSpec) -> float:
    """Predict "positive", the sample with the smaller range, when l <= x <= r, for windows about that wide.

    The counts inside a window are those up to its right end less those below its left end. So is the window's
    place in the flat table, false positives * (n_positives + 1) + false negatives, for an l that is not above r.
    """
    right = right_ends(positives[0], positives[-1], spec)
    left = LeftEnds(right, positives[-1] - positives[0], spec)
    both = np.concatenate([positives, negatives])
    order = np.argsort(both)
    both = both[order]
    # the place of the first m values together, m = 0, 1, ...
    places = np.append(0, np.cumsum(np.where(order < len(positives), -1, len(positives) + 1)))
    end = places[both.searchsorted(right, "right")] + len(positives)
    above_right = np.nextafter(right, np.inf)  # stands for any l above r: an empty window

    position, answers, unsure = _buckets(both, places)
    y_first, y_right = position(left.first), position(right)
    y_offset = np.arange(left.n) * (position(left.step[0]) - position(0.0))
    table = table.ravel()
    best = -np.inf
    for start in range(0, len(right), _N_ROWS):
        rows = slice(start, min(start + _N_ROWS, len(right)))
        columns = left.useful_columns(rows, both)
        y = y_first[rows, None] + y_offset[columns]
        if not y.size:
            continue
        if left.may_exceed_right:
            np.minimum(y, y_right[rows, None], out=y)
        found = answers.take(y.astype(np.intp), mode="clip")
        row, column = np.divmod(np.flatnonzero(found == unsure), y.shape[1])
        ends = left.at(start + row, columns.start + column)
        found[row, column] = places[both.searchsorted(np.minimum(ends, above_right[start + row]))]
        best = max(best, table[end[rows, None] - found].max())
    return best


def _buckets(ordered: np.ndarray, places: np.ndarray) -> tuple[Callable, np.ndarray, int]:
    """Answers to places[ordered.searchsorted(x)] by the bucket that x falls in, almost all of them.

    Returns a linear position(x), whose whole part is the bucket of x, the answer of each bucket, and the
    mark of those without an answer: the buckets within a hundredth of which an ordered value lies. So answers hold
    for positions with rounding errors far below that.
    """
    lowest, highest = ordered[0], ordered[-1]
    scale = _N_BUCKETS / max(highest - lowest, 1e-6 * max(1.0, abs(lowest), abs(highest)))

    def position(x):
        return (x - lowest) * scale + 2

    y = position(ordered)
    ends = np.concatenate([[-1], y.astype(np.intp), [_N_BUCKETS + 3]])
    answers = np.repeat(places, np.diff(ends))
    unsure = int(places.min()) - 1
    answers[(y - 0.01).astype(np.intp)] = unsure
    answers[(y + 0.01).astype(np.intp)] = unsure
    return position, answers, unsure


class LeftEnds:
    """The left ends that go with each right end: n of them a row, laid out as np.linspace does, to the bit."""

    def __init__(self, right: np.ndarray, width: float, spec: MetricSpec):
        self.n = int(np.ceil(2 * spec.grid_buffer * spec.grid_per_unit))
        self.right = right
        self.first = right - width - spec.grid_buffer
        self.last = right - width + spec.grid_buffer
        self.step = (self.last - self.first) / (self.n - 1)
        self.may_exceed_right = width < 1.001 * spec.grid_buffer

    def at(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return np.where(column == self.n - 1, self.last[row], column * self.step[row] + self.first[row])

    def useful_columns(self, rows: slice, both: np.ndarray) -> slice:
        """Of the columns below all values a few will do, and none above all values or above r tells anything.
        Two columns more than needed on either side leave rounding no say."""
        step = self.step[0]
        below_all = (both[0] - self.first[rows.stop - 1]) / step - 2
        above_all = (min(self.right[rows.stop - 1], both[-1]) - self.first[rows.start]) / step + 3
        return slice(*(int(min(max(column, 0), self.n)) for column in (below_all, above_all)))


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
