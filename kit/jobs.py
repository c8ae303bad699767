"""Numbered jobs on devices: in this process, or in one process for each entry of `devices`. The only process pool.

What a job makes it writes into files; processes exchange numbers and words. A process that dies, hangs or ignores the
end of its time costs the job it was at, which a fresh process can do again. The same results as from one process.
"""

import math
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from tqdm import tqdm

from kit.device import is_out_of_memory, keep_freed_memory, one_thread
from kit.errors import InputError

PATIENCE_S = 60.0  # at least so long, and ten times what the slowest took, before a silent process counts as hanging
_TRIES = 3  # of one job by processes that died


@dataclass(frozen=True)
class Job:
    """allowed_s: seconds that it may take; a process that has not stopped by itself a second later is ended."""

    number: int
    allowed_s: float = math.inf


@dataclass(frozen=True)
class Lost:
    """What comes of a job whose process died or hung."""

    reason: str


Work = Callable[[Any], Any]
Setup = Callable[[str], Work]


def run_jobs(
    setup: Setup,
    next_job: Callable[[], Job | None],
    devices: Sequence[str],
    *,
    patience_s: float = PATIENCE_S,
    setup_s: float = math.inf,
) -> Iterator[tuple[Job, Any]]:
    """Jobs and what came of them, in the order in which they end; a job is asked for whenever a process is free.

    setup: called once in each process with its device, gives the function that does a job; with several devices it
    must be picklable. next_job: None where there is nothing to begin at present. setup_s: seconds that a process may
    take until it is ready; the first job is given out once all are. An exception of the set-up or of a job is raised
    here as it is. With one device everything happens in this process. Where a device has no memory for all of its
    processes, one of them is ended and its job is lost; where it has none for one, that is an InputError.
    """
    if len(devices) == 1:
        work = None
        while job := next_job():
            try:
                work = work or setup(devices[0])
                result = work(job)
            except (RuntimeError, MemoryError) as error:
                if is_out_of_memory(error):
                    raise _no_memory(error, devices[0]) from error
                raise
            yield job, result
        return
    context, slowest_s, begun = _context(), 0.0, False
    workers = [_Worker(context, setup, device) for device in devices]
    try:
        while True:
            begun = begun or all(worker.ready for worker in workers)
            for number, worker in enumerate(workers):
                if begun and worker.ready and worker.job is None:
                    if not worker.process.is_alive():  # it died with nothing to do
                        workers[number] = worker.again()
                    elif job := next_job():
                        worker.give(job)
            busy = [worker for worker in workers if worker.job or not worker.ready]
            if not busy:
                return
            wait([worker.pipe for worker in busy], timeout=0.5)
            for worker in busy:
                job, silent_s = worker.job, worker.silent_s()
                result = worker.result(max(patience_s, 10 * slowest_s) if slowest_s else math.inf, setup_s)
                if isinstance(result, _Raised):
                    error, cause = result.error, RuntimeError(result.trace)
                    if isinstance(error, InputError) or not is_out_of_memory(error):
                        raise error from cause
                    if sum(other.device == worker.device for other in workers) < 2:
                        raise _no_memory(error, worker.device) from cause
                    worker.end()
                    workers.remove(worker)
                    result = Lost(f"no memory for {len(workers) + 1} processes on {worker.device}")
                elif isinstance(result, Lost):
                    workers[workers.index(worker)] = worker.again()
                elif result is not None:
                    slowest_s = max(slowest_s, silent_s)
                if job is not None and result is not None:
                    yield job, result
    finally:
        for worker in workers:
            worker.end()


def run_all(
    setup: Setup, numbers: Iterable[int], devices: Sequence[str], *, description: str = "", progress: bool = True
) -> dict[int, Any]:
    """What `setup(device)(number)` gives for every number, by number.

    Raises InputError where a job goes down with its process three times, or finds no memory although its process was
    the only one of its device; what other jobs wrote down is kept.
    """
    todo, found, lost = deque(numbers), {}, Counter[int]()
    bar = tqdm(total=len(todo), desc=description, disable=not progress)
    with bar, one_thread():
        jobs = run_jobs(_Numbered(setup), lambda: Job(todo.popleft()) if todo else None, devices[: max(1, len(todo))])
        for job, result in jobs:
            if isinstance(result, Lost):
                lost[job.number] += 1
                if lost[job.number] == _TRIES:
                    raise InputError(
                        f"job {job.number}: {result.reason}, {_TRIES} times: what is finished is kept; run the same "
                        "command again, with fewer processes if memory ran out"
                    )
                todo.append(job.number)
            else:
                found[job.number] = result
                bar.update()
    return found


@dataclass(frozen=True)
class _Numbered:
    """A set-up whose function takes the number of a job."""

    setup: Setup

    def __call__(self, device: str) -> Work:
        work = self.setup(device)
        return lambda job: work(job.number)


class _Worker:
    """A process, the pipe to it and the job it is at; starts: how often it was started in a row without a success."""

    def __init__(self, context: Any, setup: Setup, device: str, starts: int = 1):
        self.context, self.setup, self.device, self.starts = context, setup, device, starts
        self.ready, self.job, self._since = False, None, time.monotonic()
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_life, args=(theirs, setup, device), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, job: Job) -> None:
        self.job, self._since = job, time.monotonic()
        with suppress(OSError):  # if it died this moment, that is seen when its answer is read
            self.pipe.send(job)

    def silent_s(self) -> float:
        return time.monotonic() - self._since

    def result(self, patience_s: float, setup_s: float) -> Any:
        """What the process sent; None while it works, and once it is ready."""
        try:
            result = self.pipe.recv() if self.pipe.poll() else None
        except (EOFError, OSError):
            self.process.join(1)
            reason = f"its process died ({_end(self.process.exitcode)})"
            if not self.ready and self.starts == _TRIES:
                more = "use less memory" if "memory" in reason else "the reason is printed above"
                raise InputError(f"{self.device}: {reason} {_TRIES} times before it could begin: {more}") from None
            return Lost(reason)
        if isinstance(result, _Raised):
            return result
        if result is None:
            return self._overdue(patience_s, setup_s)
        if not self.ready:
            self.ready, self.starts = True, 0
            return None
        self.job = None
        return result

    def _overdue(self, patience_s: float, setup_s: float) -> Lost | None:
        late_s = self.silent_s()
        if not self.ready and late_s > setup_s:
            raise InputError(f"{self.device}: its process was not ready after {late_s:.0f} s: are the data too slow?")
        allowed_s = min(patience_s, self.job.allowed_s + 1.0) if self.job else math.inf
        return Lost(f"its process hung for {late_s:.0f} s") if late_s > allowed_s else None

    def again(self) -> "_Worker":
        self.end()
        return _Worker(self.context, self.setup, self.device, self.starts + 1)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


@dataclass(frozen=True)
class _Raised:
    error: BaseException
    trace: str


def _no_memory(error: BaseException, device: str) -> InputError:
    return InputError(f"{device}: {str(error).strip().splitlines()[0]}: take a smaller batch or a smaller net")


def _life(pipe: Connection, setup: Setup, device: str) -> None:
    """The life of a process: do what comes through the pipe, until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    if torch.device(device).type != "cuda":
        torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own would outlive a process that is killed
    work = job = None
    while True:
        try:
            result = True if work is None else work(job)
            work = work or setup(device)
        except BaseException as error:  # raised again where the run is
            result = _Raised(error, traceback.format_exc())
        try:
            pipe.send(result)
        except Exception:  # an error that does not travel
            pipe.send(_Raised(RuntimeError(result.trace.strip().splitlines()[-1]), result.trace))
        job = pipe.recv()


def _end_with_parent() -> None:
    """End this process as soon as the one that gave it work is gone, however that ended."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _context(*modules: str) -> Any:
    """Processes are forked off a server that has imported torch and computed nothing: importing takes seconds. Where
    there is no such server they start from scratch."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo", *modules])  # the first optimiser would import it in each
    return context


def warm_up(*modules: str) -> None:
    """Begin to import what processes need, these modules too, while the caller still reads its data."""
    if _context(*modules).get_start_method() == "forkserver":
        forkserver.ensure_running()


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        return f"{signal.Signals(-code).name}, as when memory runs out" if code == -9 else signal.Signals(-code).name
    return f"exit code {code}"
