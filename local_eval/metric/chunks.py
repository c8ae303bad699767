"""Examples in chunks over threads: the heavy numpy calls release the interpreter's lock."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kit.device import n_cores


def over_chunks(job: Callable[[slice], np.ndarray], n_examples: int, chunk: int, n_threads: int | None) -> np.ndarray:
    """job(slice of the examples) for every chunk, results joined in order; None means every usable core."""
    if n_threads is None:
        n_threads = n_cores()
    slices = [slice(start, min(start + chunk, n_examples)) for start in range(0, n_examples, chunk)]
    if n_threads == 1 or len(slices) == 1:
        parts: Iterable[np.ndarray] = map(job, slices)
    else:
        with ThreadPoolExecutor(n_threads) as pool:
            parts = list(pool.map(job, slices))
    return np.concatenate(list(parts))
