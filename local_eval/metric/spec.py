"""The constants of the score in one value; two ways to count its bins."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from kit.errors import InputError


def bins_as_in_code(n_models: int, bin_width: float) -> int:
    """Bins up to ceil(log(N - 1)), as the released scoring code counts them: 14 for N = 512."""
    return math.floor(math.ceil(math.log(n_models - 1)) / bin_width)


def bins_as_in_report(n_models: int, bin_width: float) -> int:
    """The fewest bins that hold log(N - 1), as in the technical report: 13 for N = 512, range [0, 6.5)."""
    return math.ceil(math.log(n_models - 1) / bin_width)


BINS = {"code": bins_as_in_code, "report": bins_as_in_report}


N_CHECKPOINTS = 512  # models of each kind in the competition; kit.competition has it too, and needs torch


@dataclass(frozen=True)
class MetricSpec:
    """What the score depends on besides the confidences. The defaults are the competition's.

    The fields from `grid_per_unit` on shape the grid form only; `range_ratio` holds for both forms.
    """

    delta: float = 1e-5
    cap: float = 50.0  # the largest epsilon; also that of separated, too tight and undecided examples
    bin_width: float = 0.5
    bins: Callable[[int, float], int] = bins_as_in_code  # (n_models, bin_width) -> number of bins
    range_ratio: float = 0.01  # smaller range / larger range below this: epsilon is the cap at once; 0: never
    grid_per_unit: int = 100  # thresholds per unit of confidence
    grid_buffer: float = 2.0  # window ends are searched this far to either side

    def __post_init__(self):
        if not 0 <= self.delta < 1:
            raise InputError(f"delta is {self.delta}: give a probability, 0 <= delta < 1")
        for name in ("cap", "bin_width", "grid_per_unit", "grid_buffer"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}: give a finite number above 0")
        if self.grid_per_unit * self.grid_buffer < 1:
            raise InputError("grid_per_unit * grid_buffer is below 1: the grid would have no windows")
        if not 0 <= self.range_ratio <= 1:
            raise InputError(f"range_ratio is {self.range_ratio}: give a share between 0 and 1")

    def n_bins(self, n_models: int) -> int:
        return max(0, self.bins(n_models, self.bin_width))

    def bin_ends(self, n_models: int) -> list[float]:
        """The upper end of each bin."""
        return [self.bin_width * number for number in range(1, self.n_bins(n_models) + 1)]
