"""Examples in chunks over threads: the heavy numpy calls release the interpreter's lock."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def over_chunks(job: Callable[[slice], np.ndarray], n_examples: int, chunk: int, n_threads: int | None) -> np.ndarray:
    """job(slice of the examples) for every chunk, results joined in order; None means every usable core."""
    return np.concatenate(map_chunks(job, n_examples, chunk, n_threads))


def map_chunks(job: Callable[[slice], T], n_examples: int, chunk: int, n_threads: int | None = None) -> list[T]:
    """The results themselves, in the order of the chunks."""
    if n_threads is None:
        n_threads = _n_cores()
    slices = [slice(start, min(start + chunk, n_examples)) for start in range(0, n_examples, chunk)]
    if n_threads == 1 or len(slices) == 1:
        return [job(each) for each in slices]
    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(job, slices))


def _n_cores() -> int:
    """As kit.device counts them, whose import costs that of torch: the score of arrays has no other use for it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
