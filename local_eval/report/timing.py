"""When the checkpoints of a pool were made: from its own seconds, or from the ledger of the archive they came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit.budget import format_duration
from kit.errors import InputError
from kit.ledger import FILE_NAME, Ledger
from local_eval.pool import ModelPool
from local_eval.unlearned import plans_of


@dataclass(frozen=True)
class Timing:
    """seconds (n_models,) of each checkpoint in the order they were made; plans: when plans were made or lowered, in
    seconds from the start; limit_s: the run's own limit, infinite where it had none; whole_s: the run from start to
    end where a ledger says so; steps granted to a checkpoint."""

    seconds: np.ndarray
    plans: Sequence[float] = ()
    limit_s: float = np.inf
    whole_s: float | None = None
    steps: int | None = None
    lowered: int = 0

    def sentence(self) -> str:
        """The time, the budget and what of it was used."""
        text = f"{len(self.seconds)} checkpoints took {format_duration(self.seconds.sum())} of computing"
        if self.whole_s is not None:
            text += f"; the run took {format_duration(self.whole_s)} from start to end, by its ledger"
        if np.isfinite(self.limit_s):
            used = self.seconds.sum() / self.limit_s
            text += f"; the run's limit was {format_duration(self.limit_s)}, of which one process would use {used:.0%}"
        if self.steps is not None:
            text += f"; {'1 step was' if self.steps == 1 else f'{self.steps} steps were'} granted to each"
        if self.lowered:
            text += f", and the plan was lowered {'once' if self.lowered == 1 else f'{self.lowered} times'}"
        return text + "."


def timing_of(pool: ModelPool, seconds: np.ndarray, archive: Path | None = None) -> Timing:
    """From the ledger beside an archive where there is one, else from what the pool keeps."""
    if archive is not None and (ledger := archive.with_name(FILE_NAME)).exists():
        try:
            return _from_ledger(Ledger(ledger), seconds)
        except InputError:  # not this archive's, or damaged: the pool knows enough
            pass
    plans = plans_of(pool)
    steps = plans[-1]["steps"] if plans else None
    return Timing(seconds, _at(plans), pool.identity.get("limit_s", np.inf), steps=steps, lowered=len(plans[1:]))


def _from_ledger(ledger: Ledger, seconds: np.ndarray) -> Timing:
    plans = list(ledger.of("plan"))
    end = ledger.first("end")
    made = list({line["index"]: line["seconds"] for line in ledger.of("checkpoint")}.values())
    return Timing(
        np.asarray(made[: len(seconds)] or seconds),
        plans=_at(plans),
        whole_s=end["seconds"] if end else None,
        steps=plans[-1]["steps"] if plans else None,
        lowered=len(plans[1:]),
    )


def _at(plans: Sequence[Mapping[str, Any]]) -> list[float]:
    return [line["at_s"] for line in plans]
