"""A submission made on several GPUs: one process each makes checkpoints, the caller's process writes them down.

The functions must be importable by name where the processes start, so a notebook keeps them in files.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch

from kit.budget import Plan
from kit.competition import INPUT_DIR, load_original, read_tree
from kit.emit import Made, Tasks, make_one
from kit.errors import InputError
from kit.methods import Method, method_of
from kit.submit import submit

_make: Callable[[int, Plan | None], Made] | None = None


def submit_on_all_gpus(
    unlearn: Callable[..., Any],
    name: str | None = None,
    *,
    devices: Sequence[str] | None = None,
    root: Path = INPUT_DIR,
    seed: int = 0,
    dtype: torch.dtype | None = torch.float16,
    **options: Any,
) -> Path:
    """`submit` with one process per device, every GPU by default; the checkpoints are the same bit for bit.

    Each process reads the data once. With fewer than two devices nothing else is started.
    """
    devices = devices or [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if len(devices) < 2:
        return submit(unlearn, name, root=root, seed=seed, dtype=dtype, **options)
    method = method_of(unlearn, name)
    make = partial(_make_on, list(devices), partial(_maker_on, method, root, seed, dtype))
    return submit(unlearn, name, root=root, seed=seed, dtype=dtype, make=make, n_parallel=len(devices), **options)


def _make_on(devices: list[str], setup: Callable[[str], Callable[..., Made]], tasks: Tasks) -> Iterator[Made]:
    """Checkpoints in the order in which they are finished; a task is asked for when a process is free."""
    context = multiprocessing.get_context("spawn")
    free = context.SimpleQueue()
    for device in devices:
        free.put(device)
    with ProcessPoolExecutor(len(devices), mp_context=context, initializer=_start, initargs=(setup, free)) as pool:
        running: set[Future[Made]] = set()
        try:
            for index, plan in tasks:
                running.add(pool.submit(_run, index, plan))
                if len(running) == len(devices):
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise InputError("a worker process died (killed, or out of memory): what is finished is kept") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _maker_on(method: Method, root: Path, seed: int, dtype: torch.dtype | None, device: str) -> Callable[..., Made]:
    model = load_original(root).to(device)
    where = device if method.anytime else "cpu"
    loaders = read_tree(root, loader=method.loader, device=where, progress=False)

    def make(index: int, plan: Plan | None) -> Made:
        return make_one(method, model, loaders, seed=seed, index=index, plan=plan, dtype=dtype)

    return make


def _start(setup: Callable[[str], Callable[..., Made]], free: SimpleQueue) -> None:
    global _make
    _make = setup(free.get())


def _run(index: int, plan: Plan | None) -> Made:
    return _make(index, plan)
