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
    copies, queue = [], None
    try:
        start = time.perf_counter()
        first = job(slices[0])
        if (len(slices) - 1) * (time.perf_counter() - start) < _WORTH_FORKING_S:
            return [first, *(job(each) for each in slices[1:])]
        queue = _Queue(slices[1:])
        copies = [_Copy(job, queue) for _ in range(n_workers - 1)]
        done = queue.work(job)
        for copy in copies:
            done |= copy.results()
        runs = (done[n] if n in done else [job(each) for each in run] for n, run in enumerate(queue.runs))
        return [first, *(result for run in runs for result in run)]
    finally:
        _parts.busy = False
        for copy in copies:
            copy.end()
        if queue is not None:
            os.close(queue.numbers)


class _Queue:
    """Runs of slices, whose numbers wait in a pipe, a byte each, for whichever process is free."""

    def __init__(self, slices: Sequence[slice]):
        length = -(-len(slices) // 256)
        self.runs = [slices[start : start + length] for start in range(0, len(slices), length)]
        self.numbers, filled = os.pipe()
        os.write(filled, bytes(range(len(self.runs))))
        os.close(filled)

    def work(self, job: Callable[[slice], T], parent: int = 0) -> dict[int, list[T]]:
        """Results of the runs that fall to this process, by number; no more once its parent, if given, is gone."""
        done = {}
        while (not parent or os.getppid() == parent) and (number := os.read(self.numbers, 1)):
            done[number[0]] = [job(each) for each in self.runs[number[0]]]
        return done


class _Copy:
    """A forked copy of this process, which works on the queue."""

    def __init__(self, job: Callable[[slice], T], queue: _Queue):
        parent = os.getpid()
        self._read, write = os.pipe()
        self._number = os.fork()
        if self._number:
            os.close(write)
            return
        os.close(self._read)  # else writing to a parent that was killed would wait for ever
        with suppress(BaseException), os.fdopen(write, "wb") as file:  # the parent does what is not written
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            file.write(pickle.dumps(queue.work(job, parent)))
        os._exit(0)

    def results(self) -> dict[int, list[T]]:
        with suppress(EOFError, pickle.UnpicklingError), open(self._read, "rb", closefd=False) as file:
            return pickle.load(file)
        return {}

    def end(self) -> None:
        os.close(self._read)
        os.kill(self._number, signal.SIGKILL)
        os.waitpid(self._number, 0)


def _n_cores() -> int:
    """As kit.device counts them, whose import costs that of torch: the score of arrays has no other use for it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
