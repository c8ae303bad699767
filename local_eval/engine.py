"""Run n independent jobs: one after the other, or one process per core. The same results either way.

A job runs with one thread in both engines: on a CPU two processes of one thread train small nets faster than one
process of two threads, and a sum split over threads would be rounded differently.
"""

import multiprocessing
import multiprocessing.context
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import Any, TypeVar

from tqdm import tqdm

from kit.errors import InputError
from kit.making import one_thread
from kit.workers import begin_worker, n_cores

Result = TypeVar("Result")
Setup = Callable[[], Callable[[int], Result]]
_worker_task: Callable[[int], Any] | None = None


def run_jobs(
    setup: Setup, indices: Iterable[int], *, workers: int | None = None, description: str = "", progress: bool = True
) -> dict[int, Any]:
    """Results of `setup()(index)` for every index, by index.

    setup: called once in each process to load what the jobs share; it must be picklable (a module's function, or a
    functools.partial of one) when workers > 1. workers: processes, by default one per core but no more than jobs.
    An InputError of a job ends the run with that error; jobs write down what they finish, so that nothing is lost.
    """
    indices = list(indices)
    workers = min(workers or n_cores(), len(indices))
    results = _in_processes(setup, indices, workers) if workers > 1 else _inline(setup, indices)
    bar = tqdm(results, total=len(indices), desc=description, disable=not progress)
    return dict(bar)


def _inline(setup: Setup, indices: list[int]) -> Iterator[tuple[int, Any]]:
    with one_thread():
        task = setup() if indices else None
        for index in indices:
            yield index, task(index)


def _in_processes(setup: Setup, indices: list[int], workers: int) -> Iterator[tuple[int, Any]]:
    pool = ProcessPoolExecutor(workers, mp_context=_context(), initializer=_start_worker, initargs=(setup,))
    try:
        futures = {pool.submit(_run_in_worker, index): index for index in indices}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process died (killed, or out of memory): what is finished is kept; run the same command again, "
            "with --workers 1 if it dies again"
        ) from error
    finally:
        processes = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:  # after the last result there is nothing to wait for, after an error even less
            process.terminate()


def warm_up() -> None:
    """Begin to import what worker processes need, while the caller still reads its data."""
    _context()
    if "forkserver" in multiprocessing.get_all_start_methods():
        forkserver.ensure_running()


def _context() -> multiprocessing.context.BaseContext:
    """Workers are forked off a server that has imported torch and computed nothing: importing takes seconds, and a
    fork of this process would inherit its threads in the middle of what they hold. Where no such server exists,
    workers start from scratch."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["local_eval.retrained", "local_eval.unlearned", "torch._dynamo"])
    return context


def _start_worker(setup: Setup) -> None:
    global _worker_task
    begin_worker()
    _worker_task = setup()


def _run_in_worker(index: int) -> Any:
    return _worker_task(index)
