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

_N_ROWS = 40  # windows in blocks of this many right ends stay in a core's cache
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
    """Predict "positive", the sample with the smaller range, when l <= x <= r, for windows about that wide."""
    width = positives[-1] - positives[0]
    right = right_ends(positives[0], positives[-1], spec)
    n_columns = len(positives) + 1
    both = np.sort(np.concatenate([positives, negatives]))

    # The counts inside a window are those up to its right end less those below its left end. So is the window's
    # place in the flat table, false positives * n_columns + false negatives, for an l that is not above r.
    def place(x, side):
        return negatives.searchsorted(x, side) * n_columns - positives.searchsorted(x, side)

    place_below = fast_steps(both, place(np.append(both, np.inf), "left"))
    end = place(right, "right") + len(positives)
    just_above = np.nextafter(right, np.inf)  # stands for every l above r: an empty window
    table = table.ravel()
    best = -np.inf
    for start in range(0, len(right), _N_ROWS):
        rows = slice(start, start + _N_ROWS)
        left = left_ends(right[rows], width, spec)
        np.minimum(left, just_above[rows, None], out=left)
        best = max(best, table[end[rows, None] - place_below(left)].max())
    return best


def right_ends(lowest: float, highest: float, spec: MetricSpec) -> np.ndarray:
    """Right ends (n_right,) of the windows around a sample that reaches from lowest to highest."""
    first = lowest + (highest - lowest) - spec.grid_buffer
    last = highest + spec.grid_buffer
    return np.linspace(first, last, int(np.ceil((last - first) * spec.grid_per_unit)))


def left_ends(right: np.ndarray, width: float, spec: MetricSpec) -> np.ndarray:
    """Left ends (n_right, n_left) that go with each right end."""
    buffer = spec.grid_buffer
    n_left = int(np.ceil(2 * buffer * spec.grid_per_unit))
    first, last = right - width - buffer, right - width + buffer
    left = np.multiply.outer((last - first) / (n_left - 1), np.arange(n_left, dtype=np.float64))
    left += first[:, None]  # np.linspace row by row, to the bit, but contiguous
    left[:, -1] = last
    return left


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


def fast_steps(ordered: np.ndarray, values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """f(x) = values[ordered.searchsorted(x)], several times faster on large arrays; values are whole numbers.

    One rising function sends numbers to buckets. An x in a bucket that no ordered number falls in has its answer
    in a list; only the few x in occupied buckets are searched for.
    """
    scale = _N_BUCKETS / max(ordered[-1] - ordered[0], 1e-6)
    shift = 2 - ordered[0] * scale

    def bucket(x):
        y = x * scale
        y += shift
        return y.astype(np.intp)

    occupied = np.clip(bucket(ordered), 0, _N_BUCKETS + 3)
    n_inside = np.bincount(occupied, minlength=_N_BUCKETS + 4)
    unsure = values.min() - 1
    answers = values[np.cumsum(n_inside) - n_inside]
    answers[occupied] = unsure

    def steps(x):
        result = answers.take(bucket(x), mode="clip")
        doubtful = np.flatnonzero(result == unsure)
        result.ravel()[doubtful] = values[ordered.searchsorted(x.ravel()[doubtful])]
        return result

    return steps
