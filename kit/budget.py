"""The time limit: one monotonic clock, and the plan of steps per checkpoint made from it once."""

import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from kit.errors import InputError

_UNITS_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_duration(text: str | float) -> float:
    """Seconds of `8h`, `90m`, `120s`, `1h30m` or a plain number of seconds; InputError unless positive and finite."""
    text = str(text).strip().lower()
    if re.fullmatch(r"\d+(\.\d*)?|\.\d+", text):
        seconds = float(text)
    else:
        parts = re.findall(r"(\d+(?:\.\d*)?)\s*(min|[hms])", text)
        rest = re.sub(r"(\d+(?:\.\d*)?)\s*(min|[hms])\s*", "", text)
        seconds = 0.0 if rest or not parts else sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if not 0 < seconds < math.inf:
        raise InputError(f"time limit {text!r}: expected a positive time such as 8h, 90m or 120s")
    return seconds


def format_duration(seconds: float) -> str:
    """`7 h 58 min`, `4 min 10 s`, `12.3 s`, `84 ms`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 6000:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def synchronize(device: torch.device | str) -> None:
    """Wait for the device's queued work, so that a clock read afterwards counts it."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        from torch import mps  # here: in torch 2.0 it is there only once it is imported

        mps.synchronize()


class TimeBudget:
    """A limit that began when this object was made; `reserve_s` of it is kept for closing and checking the archive.

    The clock is monotonic, so that a change of the wall clock changes nothing. limit_s may be math.inf. spent_s: what
    had passed before, such as the time that imports took.
    """

    def __init__(
        self,
        limit: str | float = math.inf,
        *,
        reserve_s: float = 0.0,
        spent_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.limit_s = math.inf if limit == math.inf else parse_duration(limit)
        self.reserve_s = reserve_s
        self._clock = clock
        self._start = clock() - spent_s

    def elapsed_s(self) -> float:
        return self._clock() - self._start

    def remaining_s(self) -> float:
        """Seconds left before the reserve begins; negative when it is being used."""
        return self.limit_s - self.reserve_s - self.elapsed_s()


class Plan:
    """How many steps one checkpoint may take. A method asks `plan.steps(wanted)` once and shapes its schedule to it.

    limit: the most steps granted, None for no limit; fill: grant the limit even where fewer are wanted.
    `wanted` remembers what the method asked for, None before it asked.
    """

    def __init__(self, limit: int | None = None, *, fill: bool = False):
        self.limit = limit
        self.fill = fill
        self.wanted: int | None = None

    def steps(self, wanted: float) -> int:
        self.wanted = max(0, math.ceil(wanted))
        if self.limit is None:
            return self.wanted
        return self.limit if self.fill else min(self.wanted, self.limit)

    def __repr__(self) -> str:
        return f"Plan(limit={self.limit}, fill={self.fill}, wanted={self.wanted})"


def planned_steps(plan: Plan | None, wanted: float) -> int:
    """The steps that `plan` grants of the wanted ones; all of them without a plan."""
    return (plan or Plan()).steps(wanted)


def planned_phases(plan: Plan | None, *wanted: float) -> list[int]:
    """The steps that `plan` grants, shared between a method's phases in the proportion of the wanted ones."""
    whole = [max(0, math.ceil(steps)) for steps in wanted]
    granted, total = planned_steps(plan, sum(whole)), max(1, sum(whole))
    ends = [granted * sum(whole[: phase + 1]) // total for phase in range(len(whole))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class StepCost:
    """Measured time of one checkpoint: `fixed_s + n_steps * step_s`."""

    fixed_s: float
    step_s: float

    def seconds(self, n_steps: int) -> float:
        return self.fixed_s + n_steps * self.step_s

    def steps_within(self, seconds: float) -> int:
        """The most steps that a checkpoint of `seconds` can take; negative if not even the fixed part fits."""
        if seconds < self.fixed_s:
            return -1
        return int((seconds - self.fixed_s) / self.step_s) if self.step_s > 0 else 2**31


def plan_steps(
    cost: StepCost,
    wanted: int,
    n_checkpoints: int,
    available_s: float,
    *,
    fill: bool = False,
    n_parallel: int = 1,
    spread: float = 0.08,
) -> int:
    """Steps per checkpoint: the wanted ones if they fit, else as many as fit; with `fill` as many as fit.

    n_parallel: checkpoints made at once. The measured cost is taken 5% higher: a plan that just fits on average is
    passed half of the time. With `fill`, 1% and `spread` of one checkpoint: such a plan is revised whenever the
    machine leaves it, and only the last ones cannot make good for each other. A method that wants no step gets none.
    Raises InputError, saying how many checkpoints fit, where one step each does not.
    """
    if available_s == math.inf:
        return wanted
    rounds = math.ceil(n_checkpoints / n_parallel)
    least, careful = min(1, wanted), 1.01 + spread / rounds if fill else 1.05
    fit = cost.steps_within(available_s / (careful * rounds))
    if fit < least:
        n_fit = n_parallel * int(max(0.0, available_s) / (careful * max(1e-9, cost.seconds(least))))
        raise InputError(
            f"the time limit fits {min(n_fit, n_checkpoints - 1)} of {n_checkpoints} checkpoints (one takes at least "
            f"{format_duration(cost.seconds(least))}): raise --limit or lower --n-models"
        )
    return fit if fill and wanted else min(wanted, fit)


class OverrunError(BaseException):
    """A checkpoint took the time that the others need. No Exception, which a participant's function may catch."""


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise OverrunError after `seconds`. Only a main thread can be woken so; elsewhere nothing happens."""
    main = threading.current_thread() is threading.main_thread()
    if seconds == math.inf or not main or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: Any) -> None:
        raise OverrunError

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, seconds))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
