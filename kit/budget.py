"""The time limit: durations, one deadline on a monotonic clock, and an alarm that rings until it is heard."""

import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kit.errors import InputError

_MOST_RINGS = 30  # of an alarm, one a second
_DEAF = (
    "error: the method goes on after its time whatever it is told: let it catch Exception, not everything by a bare "
    "except; what is finished is kept"
)
_LONGEST_ALARM_S = 1e9  # that every system can be woken after
_NUMBER = r"(\d+\.?\d*|\.\d+)"
_PART = _NUMBER + r"\s*(min|[hms])\s*"
_UNITS_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_duration(text: str | float) -> float:
    """Seconds of `8h`, `90m`, `120s`, `1h30m` or a plain number of seconds; InputError unless positive and finite."""
    text = str(text).strip().lower()
    if re.fullmatch(_NUMBER, text):
        text += "s"
    parts, rest = re.findall(_PART, text), re.sub(_PART, "", text)
    seconds = 0.0 if rest else sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if not 0 < seconds < math.inf:
        raise InputError(f"time limit {text!r}: expected a positive time such as 8h, 90m or 120s")
    return seconds


def format_duration(seconds: float) -> str:
    """`7 h 58 min`, `4 min 10 s`, `12.3 s`, `84 ms`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    if seconds < 5999.5:
        return "{} min {} s".format(*divmod(round(seconds), 60))
    return "{} h {} min".format(*divmod(round(seconds / 60), 60))


class TimeBudget:
    """A limit that began when this object was made, on a clock that no change of the wall clock moves.

    limit_s may be math.inf. spent_s: what had passed before, such as the time that imports took.
    """

    def __init__(
        self,
        limit: str | float = math.inf,
        *,
        spent_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.limit_s = math.inf if limit == math.inf else parse_duration(limit)
        self._clock = clock
        self._start = clock() - spent_s

    def elapsed_s(self) -> float:
        return self._clock() - self._start

    def remaining_s(self) -> float:
        """Seconds left; negative once the limit is passed."""
        return self.limit_s - self.elapsed_s()


class OverrunError(BaseException):
    """A function took longer than it was allowed. No Exception, which a participant's function may catch."""


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise OverrunError after `seconds`, and again every second until it is heard: a bare `except:` may swallow it.

    A function that swallows it for half a minute is ended with its process, exit code 2. Only a main thread can be
    woken so; elsewhere nothing happens.
    """
    main = threading.current_thread() is threading.main_thread()
    if seconds > _LONGEST_ALARM_S or not main or not hasattr(signal, "setitimer"):
        yield
        return
    rings = 0

    def ring(*_: Any) -> None:
        nonlocal rings
        rings += 1
        if rings > _MOST_RINGS:
            print(_DEAF, file=sys.stderr, flush=True)
            os._exit(2)
        raise OverrunError

    before = signal.signal(signal.SIGALRM, ring)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, seconds), 1.0)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # it may have rung once more a moment ago
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
