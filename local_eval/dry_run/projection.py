"""What a dry run says about the real one: 512 checkpoints, the hidden data, other devices."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from kit.competition import N_CHECKPOINTS
from kit.tools.profile import HIDDEN_RETAIN
from local_eval.dry_run.outcome import Event, Outcome

# About 30,000 hidden images, the forget set 2% of the training images; the share of the validation set is a guess.
HIDDEN = {"retain": HIDDEN_RETAIN, "forget": 530, "validation": 3_470}
# Seconds of one epoch of fine-tuning over the hidden retain set at batch 64, data loading included. P100: reported by
# participants. T4: not measured; slower by the mean of the two cards' ratios of arithmetic rate and of memory rate.
EPOCH_S = {"P100": 9.0, "T4": 14.6}
# The share of it that reading the batches takes; the rest is the net's, in steps of 64 images, or of more in the same
# time. From two submissions that fitted the limit: the first prize's 8 epochs in batches of 256 leave reading at most
# two thirds of an epoch, the eighth's 5 epochs beside a teacher at least a quarter.
_READING = 0.5
_BATCH_SIZE = 64
_TRAINED, _EVALUATED = 3, 1  # passes through the net: forward and backward count thrice a forward pass


@dataclass(frozen=True)
class Projection:
    """Seconds for 512 checkpoints on the hidden data: on the device of the dry run, and on devices by name.

    epochs: passes of training over the hidden retain set that one checkpoint costs, forward passes counted a third.
    law: how it grows, where a pass over one loader lies within each batch of another; else empty.
    """

    here_s: float
    on: Mapping[str, float]
    epochs: float
    checkpoint_s: float
    law: str = ""


def project(outcome: Outcome, sizes: Mapping[str, int], n_models: int, *, every_gpu: bool = False) -> Projection | None:
    """From the last `n_models` checkpoints; None where fewer than two were saved. every_gpu: does the program take all
    GPUs that it is given? Of T4 Kaggle gives two.

    sizes: split -> number of examples of the stand-in. A pass over a split is taken to cost as much more on the
    hidden data as the split is larger there; one within each batch of another as much more as both have more batches.
    """
    saves = outcome.saves[-n_models:]
    if len(saves) < 2:
        return None
    n_processes = len({event["pid"] for event in saves})
    gaps = [later["t"] - earlier["t"] for earlier, later in pairwise(saves)]
    gap_s = statistics.median(gaps) if n_processes == 1 else statistics.fmean(gaps)
    saving_s = statistics.median(event["seconds"] for event in saves)
    images, drawn = (statistics.median(map(count, saves[1:])) for count in (_images, _drawn))
    setup_s = max(0.0, saves[0]["t"] - outcome.start_s - gap_s)
    if 10 * images < (before := _images(saves[0])):  # all runs came first, all savings last
        gap_s, setup_s = (saves[-1]["t"] - outcome.start_s) / len(saves), 0.0
        images, drawn = before / len(saves), _drawn(saves[0]) / len(saves)
    scale, law = _scale_and_law(saves, sizes)
    closing_s = max(0.0, outcome.end_s - saves[-1]["t"]) * N_CHECKPOINTS / n_models
    here = max(0.0, gap_s - saving_s) * scale + saving_s

    def whole(checkpoint_s: float) -> float:
        return setup_s + closing_s + N_CHECKPOINTS * checkpoint_s

    epochs = images * scale / (_TRAINED * HIDDEN["retain"])
    read = drawn * scale / HIDDEN["retain"] if drawn else epochs
    effort = _READING * read + (1 - _READING) * epochs * _BATCH_SIZE / _mean_batch(saves)
    epoch_s = EPOCH_S | ({"pair of T4": EPOCH_S["T4"] / 2} if every_gpu else {})
    on = {name: whole(effort * seconds / n_processes + saving_s) for name, seconds in epoch_s.items()}
    return Projection(whole(here), on, epochs, here, law)


def _images(event: Event) -> float:
    seen = event["seen"]
    return _TRAINED * seen.get("trained", 0) + _EVALUATED * seen.get("evaluated", 0)


def _drawn(event: Event) -> int:
    return sum(n for *_, n in event["drawn"])


def _mean_batch(saves: list[Event]) -> float:
    """Images a step: of what was drawn, by the sizes of batches that loaders were told."""
    n_steps = sum(n / (batch_size or 1) for event in saves for _, batch_size, n in event["drawn"])
    return sum(map(_drawn, saves)) / n_steps if n_steps else _BATCH_SIZE


def _scale_and_law(saves: list[Event], sizes: Mapping[str, int]) -> tuple[float, str]:
    """How many times more images nets see on the hidden data, and the law where it is not each loader's own size."""
    named = {size: split for split, size in reversed(sizes.items())}
    plain, all_images = _scale(saves, sizes), sum(map(_images, saves))
    nested, weighted, laws = 0.0, 0.0, []
    for event in saves:
        for pair in event["nested"]:
            if not (images := _images(pair)):
                continue
            loaders = [(named.get(size, "retain"), size, batch) for size, batch in (pair["outer"], pair["inner"])]
            growth = [
                math.ceil(HIDDEN[name] / batch) / math.ceil(size / batch) for name, size, batch in loaders if size
            ]
            nested += images
            weighted += images * math.prod(growth)
            laws.append(" x ".join(name for name, *_ in loaders))
    if not laws or not all_images:
        return plain, ""
    rest = max(0.0, all_images - nested)
    return (weighted + rest * plain) / max(all_images, nested), max(set(laws), key=laws.count)


def _scale(saves: list[Event], sizes: Mapping[str, int]) -> float:
    """How much more the hidden data makes of the examples drawn; a data set of no split's size counts as retain."""
    factors = {size: HIDDEN[split] / size for split, size in sizes.items()}
    drawn = [
        (factors.get(size, HIDDEN["retain"] / sizes["retain"]), n) for event in saves for size, _, n in event["drawn"]
    ]
    total = sum(n for _, n in drawn)
    return sum(factor * n for factor, n in drawn) / total if total else HIDDEN["retain"] / sizes["retain"]
