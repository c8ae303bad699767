"""Jobs on devices: in this process, or in one process for each entry of `devices`. The only process pool.

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

from tqdm import tqdm

from kit.device import is_out_of_memory, reproducible
from kit.errors import InputError, first_line
from kit.memory import keep_freed_memory

PATIENCE_S = 60.0  # at least so long, and ten times what the slowest took, before a silent process counts as hanging
_BEGUN = "begun"  # what a process says before each job; reading its data is no part of one


@dataclass(frozen=True)
class Job:
    """allowed_s: seconds that it may take; a process that has not stopped by itself a second later is ended. begin_s:
    the same of what a process does before its first job."""

    number: int
    allowed_s: float = math.inf
    begin_s: float = field(default=math.inf, kw_only=True)


@dataclass(frozen=True)
class Lost:
    """What comes of a job whose process died or hung. n_left: where only too many on its device were the reason, how
    many processes there are now."""

    reason: str
    n_left: int = 0


Work = Callable[[Any], Any]
Setup = Callable[[str], Work]


def run_jobs(setup: Setup, next_job: Callable[[], Job | None], devices: Sequence[str]) -> Iterator[tuple[Job, Any]]:
    """Jobs and what came of them, in the order in which they end; a job is asked for whenever a process is free.

    setup: called once in each process with its device, gives the function that does a job; with several devices it
    must be picklable. next_job: None where there is nothing to begin at present. An exception of the set-up or of a
    job is raised here as it is. With one device everything happens in this process. Where a device has no memory for
    all of its processes, one of them is ended and its job is lost; where it has none for one, that is an InputError.
    """
    if len(devices) == 1:
        work = None
        while job := next_job():
            try:
                work = work or setup(devices[0])
                result = work(job)
            except (RuntimeError, MemoryError) as error:
                raise _told(error, devices[0]) from None
            yield job, result
        return
    slowest_s = 0.0
    workers = [_Worker(setup, device) for device in devices]
    try:
        while True:
            for worker in workers:
                if worker.job is None and (job := next_job()):
                    worker.give(job, alone=_n_on(worker.device, workers) == 1)
            if not (busy := [worker for worker in workers if worker.job]):
                return
            wait([worker.pipe for worker in busy], timeout=0.5)
            for worker in busy:
                job, seconds = worker.job, worker.silent_s()
                result = worker.result(max(PATIENCE_S, 10 * slowest_s) if slowest_s else math.inf)
                if result is None:
                    continue
                if isinstance(result, Lost):
                    worker.end()
                    workers[workers.index(worker)] = _Worker(setup, worker.device)
                elif result.error:
                    if worker.alone or not is_out_of_memory(result.error):
                        raise _told(result.error, worker.device) from RuntimeError(result.trace)
                    worker.end()
                    workers.remove(worker)
                    if not _n_on(worker.device, workers):  # those beside it are gone: there may be memory for one
                        workers.append(_Worker(setup, worker.device))
                    result = Lost(f"no memory for one more process on {worker.device}", n_left=len(workers))
                else:
                    slowest_s, result = max(slowest_s, seconds), result.value
                yield job, result
    finally:
        for worker in workers:
            worker.end()


def _n_on(device: str, workers: "Sequence[_Worker]") -> int:
    return sum(worker.device == device for worker in workers)


def _told(error: BaseException, device: str) -> BaseException:
    """The error itself, but where memory ran out one that says what to do."""
    if isinstance(error, InputError) or not is_out_of_memory(error):
        return error
    return InputError(f"{device}: {first_line(error)}: take a smaller batch or a smaller net")


class _Worker:
    """A process, the pipe to it and the job it is at."""

    def __init__(self, setup: Setup, device: str):
        context = _context()
        self.device, self.job, self.alone, self._since, self._begun = device, None, True, math.inf, False
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_life, args=(theirs, setup, device), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, job: Job, alone: bool) -> None:
        """alone: is it the only process of its device?"""
        self.job, self.alone, self._since = job, alone, time.monotonic()
        with suppress(OSError):  # if it died this moment, that is seen when its answer is read
            self.pipe.send(job)

    def silent_s(self) -> float:
        """Seconds since it began its job, or was given its first."""
        return time.monotonic() - self._since

    def result(self, patience_s: float) -> Any:
        """What the process sent: `_Answer` or `Lost`; None while it works."""
        try:
            result = self.pipe.recv() if self.pipe.poll() else None
        except (EOFError, OSError):
            self.process.join(1)
            what = "died" if self._begun else "ended at its start"
            return Lost(f"its process {what} ({_end(self.process.exitcode)})")
        if result == _BEGUN:
            self._since, self._begun = time.monotonic(), True
        elif result is not None:
            self.job = None
            return result
        allowed_s, what = self.job.begin_s, "did not begin in"
        if self._begun:
            allowed_s, what = min(patience_s, self.job.allowed_s + 1.0), "hung for"
        return Lost(f"its process {what} {self.silent_s():.0f} s") if self.silent_s() > allowed_s else None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


@dataclass(frozen=True)
class _Answer:
    """What a job gave, or what it raised."""

    value: Any = None
    error: BaseException | None = None
    trace: str = ""


def _life(pipe: Connection, setup: Setup, device: str) -> None:
    """The life of a process: do what comes through the pipe, until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, once
    multiprocessing.current_process()._config["daemon"] = False  # a method's loaders may have workers of their own
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    tqdm.set_lock(threading.RLock())  # its own would outlive a process that is killed
    work = None
    with ExitStack() as whole_life:
        while True:
            job = pipe.recv()
            try:
                if work is None:
                    whole_life.enter_context(reproducible(device))
                    work = setup(device)
                pipe.send(_BEGUN)
                answer = _Answer(work(job))
            except BaseException as error:  # raised again where the run is
                answer = _Answer(error=error, trace=traceback.format_exc())
            try:
                pipe.send(answer)
            except Exception:  # an error that does not travel
                pipe.send(_Answer(error=RuntimeError(answer.trace.strip().splitlines()[-1]), trace=answer.trace))


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
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # a server that asks CUDA itself forks no users of it
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
