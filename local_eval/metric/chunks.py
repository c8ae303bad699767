"""Examples in chunks over processes: numpy's calls on a chunk are too short for threads to share an interpreter."""

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import numpy as np

T = TypeVar("T")
_WORTH_FORKING_S = 0.04  # of work: a fork costs a tenth of that
_parts = threading.local()  # busy: this thread is at a part of some work, whose own parts are not parted again


def over_chunks(
    job: Callable[[slice], np.ndarray], n_examples: int, chunk: int, n_workers: int | None = None
) -> np.ndarray:
    """job(slice of the examples) for every chunk, results joined in order; None means every usable core."""
    return np.concatenate(map_chunks(job, n_examples, chunk, n_workers))


def map_chunks(job: Callable[[slice], T], n_examples: int, chunk: int, n_workers: int | None = None) -> list[T]:
    """The results themselves, in the order of the chunks. The job must be free of side effects: on Linux, where there
    is much to do, copies of this process do a part of it, and what one that died left is done here."""
    n_workers = n_workers or _n_cores()
    slices = [slice(start, min(start + chunk, n_examples)) for start in range(0, n_examples, chunk)]
    n_workers = min(n_workers, len(slices))
    if n_workers == 1 or sys.platform != "linux" or getattr(_parts, "busy", False):
        return [job(each) for each in slices]
    _parts.busy = True
    copies = []
    try:
        start = time.perf_counter()
        first = job(slices[0])
        if (len(slices) - 1) * (time.perf_counter() - start) < _WORTH_FORKING_S:
            return [first, *(job(each) for each in slices[1:])]
        copies = [_Copy(job, slices[number::n_workers]) for number in range(1, n_workers)]
        parts = [[first, *(job(each) for each in slices[n_workers::n_workers])]]
        for number, copy in enumerate(copies, start=1):
            parts.append(copy.results() or [job(each) for each in slices[number::n_workers]])
        return [parts[i % n_workers][i // n_workers] for i in range(len(slices))]
    finally:
        _parts.busy = False
        for copy in copies:
            copy.end()


class _Copy:
    """A forked copy of this process, which does the job for some slices."""

    def __init__(self, job: Callable[[slice], T], slices: Sequence[slice]):
        self._read, write = os.pipe()
        self._number = os.fork()
        if self._number:
            os.close(write)
            return
        with suppress(BaseException), os.fdopen(write, "wb") as file:  # the parent does what is not written
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            file.write(pickle.dumps([job(each) for each in slices]))
        os._exit(0)

    def results(self) -> list[T] | None:
        with suppress(EOFError, pickle.UnpicklingError), open(self._read, "rb", closefd=False) as file:
            return pickle.load(file)
        return None

    def end(self) -> None:
        os.close(self._read)
        os.kill(self._number, signal.SIGKILL)
        os.waitpid(self._number, 0)


def _n_cores() -> int:
    """As kit.device counts them, whose import costs that of torch: the score of arrays has no other use for it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
