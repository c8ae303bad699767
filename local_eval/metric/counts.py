"""How many values of a sample lie below a point, for many samples and points at once."""

import numpy as np

_NARROWEST = 1e-9  # of the span of all cells: samples of one value have none


class Counts:
    """The values of each row of a sorted array (n_rows, n_values), counted in cells of equal width from low to high.

    A value of a lower cell than a point's is smaller than the point, one of a higher cell larger, however cells are
    rounded: only the values of the point's own cell have to be compared. low, high: (n_rows,); points beyond them are
    in one cell on either side.
    """

    def __init__(self, ordered: np.ndarray, low: np.ndarray, high: np.ndarray, n_cells: int):
        n_rows, self.n_values = ordered.shape
        self.ordered = ordered.ravel()
        self.low, self.per_unit, self.n_cells = low, n_cells / np.maximum(high - low, _NARROWEST), n_cells
        rows = np.arange(n_rows)[:, None]
        in_cells = np.bincount(self.cells(rows, ordered).ravel(), minlength=n_rows * (n_cells + 3))
        in_cells = in_cells.reshape(n_rows, n_cells + 3)
        # entry c of a row: values in cells before c
        self.before = (np.cumsum(in_cells, axis=1, dtype=np.int32) - in_cells.astype(np.int32)).ravel()

    def cells(self, row: np.ndarray, points: np.ndarray) -> np.ndarray:
        """The cell of each point, which is the same for all samples with the same rows, ends and number of cells."""
        place = points - self.low[row]
        place *= self.per_unit[row]
        place += 1
        np.clip(place, 0, self.n_cells + 1, out=place)
        cell = place.astype(np.intp)
        cell += row * (self.n_cells + 3)
        return cell

    def fewest(self, cells: np.ndarray) -> np.ndarray:
        """At least so many values of the row are below a point of each cell."""
        return self.before.take(cells)

    def most(self, cells: np.ndarray) -> np.ndarray:
        """At most so many values of the row are not above a point of each cell."""
        return self.before.take(cells + 1)

    def below(self, row: np.ndarray, points: np.ndarray, cells: np.ndarray, compare: np.ufunc = np.less) -> np.ndarray:
        """How many values of the row are below each point; with np.less_equal, not above it."""
        fewest, most = self.fewest(cells), self.most(cells)
        still = np.flatnonzero(fewest < most)
        while len(still):
            low, high = fewest[still], most[still]
            middle = (low + high) >> 1
            holds = compare(self.ordered.take(row[still] * self.n_values + middle), points[still])
            fewest[still] = low = np.where(holds, middle + 1, low)
            most[still] = high = np.where(holds, high, middle)
            still = still[low < high]
        return fewest
