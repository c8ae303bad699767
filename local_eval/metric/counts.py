"""How many values of a sample lie below a point, for many samples and points at once."""

from collections.abc import Callable

import numpy as np


class Counts:
    """The values of each row of a sorted array (n_rows, n_values), counted below n points that lie evenly.

    first, step: (n_rows,), where the points lie; the last counts as above all values. near: (n_rows,), above 0, how far
    from there each may lie in truth. fewest, most: of the points of all rows, one row behind the other: at least so
    many values are below a point, and at most so many are not above it. They differ where a value is as near as that:
    only such values have to be compared.
    """

    def __init__(self, ordered: np.ndarray, first: np.ndarray, step: np.ndarray, n: int, near: np.ndarray):
        n_rows, self.n_values = ordered.shape
        self.ordered = ordered.ravel()
        wider = np.maximum(step, near / n)  # where steps are no more than that, all points are laid out anew
        per_unit = 1 / wider
        reach = 2 * ((near + n * (wider - step)) * per_unit + 4 * np.finfo(float).eps * n)
        place = ordered - first[:, None]
        place *= per_unit[:, None]
        place += 1 + reach[:, None] / 2
        np.clip(place, 0.5, n - 0.5, out=place)
        surely = place.astype(np.intp)  # the first point that each value is below
        place -= surely
        surely += np.arange(0, n_rows * n, n)[:, None]
        surely, place, reach = surely.ravel(), place.ravel(), np.repeat(reach, self.n_values)
        self.fewest = self.most = _summed(np.bincount(surely, minlength=n_rows * n).reshape(n_rows, n), self.n_values)
        unsure = np.flatnonzero(place < reach)
        if len(unsure):
            self.most = self.most.copy()
            surely = surely[unsure]
            maybe = surely + np.floor(place[unsure] - reach[unsure]).astype(np.intp)
            maybe = np.maximum(maybe, surely // n * n)
            while (left := np.flatnonzero(maybe < surely)).size:
                surely, maybe = surely[left], maybe[left]
                np.add.at(self.most, maybe, 1)
                maybe += 1

    def below(
        self,
        row: np.ndarray,
        points: Callable[[np.ndarray], np.ndarray],
        before: np.ndarray,
        behind: np.ndarray,
        compare: np.ufunc = np.less,
    ) -> np.ndarray:
        """How many values of the row are below each point; with np.less_equal, not above it.

        points: the points of these numbers, asked for where a value is near; before, behind: which of the even ones
        are not above and not below each point.
        """
        fewest, most = self.fewest.take(before), self.most.take(behind)
        still = np.flatnonzero(fewest < most)
        while len(still):
            low, high = fewest[still], most[still]
            middle = (low + high) >> 1
            holds = compare(self.ordered.take(row[still] * self.n_values + middle), points(still))
            fewest[still] = low = np.where(holds, middle + 1, low)
            most[still] = high = np.where(holds, high, middle)
            still = still[low < high]
        return fewest


def _summed(counts: np.ndarray, total: int) -> np.ndarray:
    """Sums over each row up to every entry, flat: twice as many entries at a time, faster than one after the other."""
    sums, known = counts.astype(np.int16 if total < 2**14 else np.int32), 1
    while known < sums.shape[1]:
        sums[:, known:] += sums[:, :-known]
        known *= 2
    return sums.ravel()
