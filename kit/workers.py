"""Checkpoints made by several processes: one a GPU, or one a core with one thread each. The same bits as from one.

A process that dies or hangs costs the checkpoint it was at, which is made again by a fresh one. The functions must be
importable by name where the processes start, so a notebook keeps them in files.
"""

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from kit.checkpoint import Made
from kit.competition import INPUT_DIR, load_original, read_tree
from kit.errors import InputError
from kit.making import Lost, Maker, NextTask, Probe, Task
from kit.methods import Method, method_of
from kit.submit import submit

Setup = Callable[[str], Callable[[Task], Made | Probe]]
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_PATIENCE_S = 60.0  # at least so long, and ten times what the slowest took, before a silent process counts as hanging


def submit_on_all_gpus(
    unlearn: Callable[..., Any],
    name: str | None = None,
    *,
    devices: Sequence[str] | None = None,
    root: Path = INPUT_DIR,
    seed: int = 0,
    dtype: torch.dtype | None = torch.float16,
    fill: bool = False,
    **options: Any,
) -> Path:
    """`submit` with one process per device, every GPU by default; the checkpoints are the same bit for bit.

    Each process reads the data once. With fewer than two devices nothing else is started.
    """
    devices = devices or [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    common = {"root": root, "seed": seed, "dtype": dtype, "fill": fill, **options}
    if len(devices) < 2:
        return submit(unlearn, name, **common)
    with Processes(partial(_maker_on, method_of(unlearn, name), root, seed, dtype, fill), devices) as crew:
        return submit(unlearn, name, crew=crew, **common)


def _maker_on(method: Method, root: Path, seed: int, dtype: torch.dtype | None, fill: bool, device: str) -> Maker:
    model = load_original(root).to(device)
    where = device if method.anytime else "cpu"
    return Maker(method, model, read_tree(root, loader=method.loader, device=where, progress=False), seed, dtype, fill)


class Processes:
    """A crew of one process per entry of `devices` ("cpu" several times for several cores).

    setup: called once in each process with its device, gives the function that makes a checkpoint; it must be
    picklable. patience_s: how long a process may say nothing at the least, once a checkpoint was made.
    """

    def __init__(self, setup: Setup, devices: Sequence[str], *, patience_s: float = _PATIENCE_S):
        self.setup, self.n_parallel, self.patience_s = setup, len(devices), patience_s
        self._context = _context()
        self._slowest_s = 0.0
        self._workers = [_Worker(self._context, setup, device) for device in devices]

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: Any) -> None:
        for worker in self._workers:
            worker.end()

    def run(self, next_task: NextTask) -> Iterator[Made | Probe | Lost]:
        """Checkpoints in the order in which they are finished; a task is asked for when a process is free."""
        while True:
            for number, worker in enumerate(self._workers):
                if worker.task is None and (task := next_task()):
                    if not worker.process.is_alive():  # it died with nothing to do
                        worker = self._workers[number] = worker.again(self._context, self.setup)
                    worker.give(task)
            busy = [worker for worker in self._workers if worker.task]
            if not busy:
                return
            wait([worker.pipe for worker in busy], timeout=0.5)
            for number, worker in enumerate(self._workers):
                if worker.task:
                    result = self._result_of(worker)
                    if isinstance(result, Lost):
                        self._workers[number] = worker.again(self._context, self.setup)
                    if result is not None:
                        yield result

    def _result_of(self, worker: "_Worker") -> Made | Probe | Lost | None:
        """What a process sent, None while it works."""
        task = worker.task
        try:
            result = worker.pipe.recv() if worker.pipe.poll() else None
        except (EOFError, OSError):
            worker.process.join(1)
            code = worker.process.exitcode
            return Lost(task, f"its worker process died ({_end(code)})")
        if result is None:
            if worker.silent_s() > self._patience(task):
                return Lost(task, f"its worker process hung for {worker.silent_s():.0f} s")
            return None
        worker.task = None
        if isinstance(result, Exception):
            raise result
        self._slowest_s = max(self._slowest_s, getattr(result, "seconds", 0.0))
        return result

    def _patience(self, task: Task) -> float:
        """Seconds a process may say nothing: a limit leaves a little beyond what the task was allowed, for a process
        that can still stop itself; otherwise ten times what the slowest took so far."""
        usual_s = max(self.patience_s, 10 * self._slowest_s) if self._slowest_s else float("inf")
        return min(usual_s, task.allowed_s + 1.0)


class _Worker:
    """A process, the pipe to it and the task it is at."""

    def __init__(self, context: Any, setup: Setup, device: str):
        self.device, self.task = device, None
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, setup, device), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, task: Task) -> None:
        self.task, self._since = task, time.monotonic()
        with suppress(OSError):  # if it died this moment, that is seen when its answer is read
            self.pipe.send(task)

    def silent_s(self) -> float:
        return time.monotonic() - self._since

    def again(self, context: Any, setup: Setup) -> "_Worker":
        self.end()
        return _Worker(context, setup, self.device)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def n_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _context() -> Any:
    """Processes are forked off a server that has imported torch and computed nothing: importing takes seconds. Where
    there is no such server they start from scratch."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])  # the first optimiser would import it in each
    return context


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        return f"{signal.Signals(-code).name}, as when memory runs out" if code == -9 else signal.Signals(-code).name
    return f"exit code {code}"


def _work(pipe: Connection, setup: Setup, device: str) -> None:
    """The life of a process: make what comes through the pipe, until its parent is gone."""
    begin_worker(n_threads=1 if device == "cpu" else None)
    tqdm.set_lock(threading.RLock())  # its own would outlive a process that is killed
    make = None
    while True:
        task = pipe.recv()
        try:
            make = make or setup(device)
            result = make(task)
        except Exception as error:  # raised again where the run is
            result = error if isinstance(error, InputError) else InputError(f"a worker process: {error!r}")
        pipe.send(result)


def begin_worker(n_threads: int | None = 1) -> None:
    """What every worker process does first. n_threads: that it computes with, None for torch's own choice."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    if n_threads:
        torch.set_num_threads(n_threads)


def _end_with_parent() -> None:
    """End this process as soon as the one that gave it work is gone, however that ended."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def keep_freed_memory() -> None:
    """Let glibc reuse what a training step frees instead of giving it back to the system, whose fresh pages cost a
    fault each: small nets train faster. Elsewhere nothing happens."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    if any(mallopt(_M_MMAP_THRESHOLD, largest) for largest in (1 << 30, 1 << 25)):  # older ones take 32 MiB at most
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)  # alone it would freeze the other at 128 KiB
