"""When the checkpoints of a pool were made: from its own seconds, or from the ledger of the archive they came from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kit.budget import format_duration
from kit.errors import InputError
from kit.ledger import FILE_NAME, Ledger
from local_eval.pool import ModelPool
from local_eval.report.evidence import plan_facts


@dataclass(frozen=True)
class Timing:
    """seconds (n_models,) of each checkpoint in the order they were made; plans: when plans were made or revised, in
    seconds from the start; limit_s: the run's own limit, infinite where it had none; whole_s: the run from start to
    end where a ledger says so; steps granted to a checkpoint."""

    seconds: np.ndarray
    plans: Sequence[float] = ()
    limit_s: float = np.inf
    whole_s: float | None = None
    steps: int | None = None
    revised: int = 0

    def sentence(self) -> str:
        """The time, the budget and what of it was used."""
        text = f"{len(self.seconds)} checkpoints took {format_duration(self.seconds.sum())} of computing"
        if self.whole_s is not None:
            text += f"; the run took {format_duration(self.whole_s)} from start to end, by its ledger"
        if np.isfinite(self.limit_s):
            used = self.seconds.sum() / self.limit_s
            text += f"; the run's limit was {format_duration(self.limit_s)}, of which one process would use {used:.0%}"
        if self.steps is not None:
            text += f"; {self.steps} steps were granted to each"
        if self.revised:
            text += f", and the plan was revised {self.revised} times"
        return text + "."


def timing_of(pool: ModelPool, seconds: np.ndarray, archive: Path | None = None) -> Timing:
    """From the ledger beside an archive where there is one, else from what the pool keeps."""
    if archive is not None and (ledger := archive.with_name(FILE_NAME)).exists():
        try:
            return _from_ledger(Ledger(ledger), seconds)
        except InputError:  # not this archive's, or damaged: the pool knows enough
            pass
    facts = plan_facts(pool)
    return Timing(seconds, limit_s=facts.get("limit_s") or np.inf, steps=facts.get("steps"))


def _from_ledger(ledger: Ledger, seconds: np.ndarray) -> Timing:
    plans = list(ledger.of("plan"))
    end = ledger.first("end")
    made = [line["seconds"] for line in ledger.of("checkpoint")]
    return Timing(
        np.asarray(made[: len(seconds)] or seconds),
        plans=[line["at_s"] for line in plans],
        whole_s=end["seconds"] if end else None,
        steps=plans[-1]["steps"] if plans else None,
        revised=sum("revised" in line for line in plans),
    )
