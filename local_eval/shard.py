"""One part of the numbered models, for several machines that fill one shared folder."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kit.errors import InputError


@dataclass(frozen=True)
class Shard:
    """Every n-th model, beginning with the number-th: 1 of 4 has the models 0, 4, 8, ..."""

    number: int
    n: int

    def of(self, indices: Iterable[int]) -> list[int]:
        """Those of this part: which one a model belongs to does not depend on what is there already."""
        return [index for index in indices if index % self.n == self.number - 1]


WHOLE = Shard(1, 1)


def parse_shard(text: str | None) -> Shard:
    """Read K/N; None is the whole.

    >>> parse_shard("2/4").of(range(10))
    [1, 5, 9]
    """
    if text is None:
        return WHOLE
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--shard {text}: give K/N, such as 1/4, with K from 1 to N")
    return Shard(int(found[1]), int(found[2]))
