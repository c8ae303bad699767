"""Mixtures: how one is written, `mixture(transpose=246, pseudo_label=266)`, and whose turn which checkpoint is."""

import math
from functools import cache

from kit.errors import InputError

PREFIX = "mixture("
_LARGEST = 100_000  # sum of the weights in lowest terms: so many turns are kept


def read_mixture(spec: str) -> list[tuple[str, int]]:
    """The components of `mixture(NAME=WEIGHT, ...)` with their weights. Raises InputError for what is no mixture."""
    inner = spec.removeprefix(PREFIX).strip()
    if PREFIX in inner:
        raise InputError(f"{spec}: a mixture holds no mixture: name the methods with their shares of the whole")
    if not inner.endswith(")"):
        raise InputError(f"{spec}: expected mixture(NAME=WEIGHT, NAME=WEIGHT)")
    return [_component(part.strip(), spec) for part in inner[:-1].split(",")]


def _component(text: str, spec: str) -> tuple[str, int]:
    name, _, weight = (word.strip() for word in text.rpartition("="))
    if not name:
        raise InputError(f"{spec}: {text or 'an empty part'}: expected NAME=WEIGHT, such as transpose=246")
    if not (weight.isascii() and weight.isdigit() and int(weight[:9])):
        raise InputError(f"{spec}: {name} has the weight {weight}: expected a whole number of at least 1")
    return name, int(weight)


@cache
def interleaving(weights: tuple[int, ...]) -> tuple[int, ...]:
    """Which component has its turn, from checkpoint 0 on; then all over again.

    However many checkpoints are made, the number of each component's is off its share by less than one, and with two
    components by half at most. Source: Tijdeman 1980, "The chairman assignment problem". Raises InputError where it
    begins anew after more than 100,000 turns only.

    >>> interleaving((1, 3))
    (1, 0, 1, 1)
    """
    divisor = math.gcd(*weights)
    weights = tuple(weight // divisor for weight in weights)
    total, k = sum(weights), 2 * len(weights) - 2
    if total > _LARGEST:
        raise InputError(f"mixture: the weights add up to {total}: take smaller ones, at most {_LARGEST} in all")
    counts = [0] * len(weights)
    turns = []
    for number in range(1, total + 1):
        due = [number * weight - total * count for weight, count in zip(weights, counts, strict=True)]
        # Of those that may have a turn the one that can wait least: numbers are in 1 / total, times k.
        waits = [((k - 1) * total - k * due[i], weights[i], i) for i in range(len(weights)) if k * due[i] >= total]
        turn = min(waits, key=lambda wait: wait[0] / wait[1])[2]
        counts[turn] += 1
        turns.append(turn)
    return tuple(turns)
