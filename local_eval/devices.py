"""Where models are made: devices by name, one entry a process. Small nets fill no GPU, so that several share one."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kit.device import accelerators, choose_device, hardware_name, n_cores, synchronize
from kit.jobs import Job, Lost, run_jobs, warm_up
from kit.ledger import write_atomically
from local_eval.engines import Cluster
from local_eval.setting import Workspace, as_dataset, reopen

_WORTH_MEASURING = 8  # models to be made, from which on it pays to look for the best number of processes
_MOST_SLOTS, _GAIN = 16, 1.15  # processes on one GPU; what twice as many must do at the least
_MEASURED_S, _N_IMAGES = 1.5, 1024


def devices_of(
    name: str = "auto", slots: int | None = None, workspace: Workspace | None = None, n_models: int = 0
) -> list[str]:
    """Every GPU, or the device of this name, as often as processes shall work on it.

    slots: processes a device; by default one a core on the CPU, and on a GPU as many as together train the models of
    the workspace fastest, which is measured once; one where `n_models` are too few for that.
    """
    device = choose_device(name)
    if device.type == "cpu":
        return ["cpu"] * (slots or n_cores())
    found = accelerators() if device.type == "cuda" and device.index is None else [str(device)]
    if slots is None and workspace is not None and n_models >= _WORTH_MEASURING:
        slots = best_slots(workspace, found[0])
    return found * (slots or 1)


def processes_for(devices: Sequence[str], workspace: Workspace, n_models: int) -> list[str]:
    """The devices, or those that `devices_of` chooses, for at most a process a model, which begin to be started; or the
    cluster."""
    if isinstance(devices, Cluster):
        return devices
    devices = list(devices or devices_of(workspace=workspace, n_models=n_models))[:n_models]
    begin_processes(devices)
    return devices


def begin_processes(devices: Sequence[str]) -> None:
    """Begin to import what several processes need, while the caller still reads its data."""
    if len(devices) < 2:
        return
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None  # Ctrl-C is for us, not for their imports
    try:
        warm_up("local_eval.retrained", "local_eval.unlearned", "local_eval.archived")
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


@contextmanager
def hidden_cuda(device: str) -> Iterator[None]:
    """Inside, a function that asks torch whether there is a GPU is told of none where `device` is the CPU: its net and
    the data that it is given lie there. Elsewhere nothing changes."""
    if torch.device(device).type != "cpu":
        yield
        return
    before = torch.cuda.is_available, torch.cuda.device_count
    torch.cuda.is_available, torch.cuda.device_count = lambda: False, lambda: 0
    try:
        yield
    finally:
        torch.cuda.is_available, torch.cuda.device_count = before


def best_slots(workspace: Workspace, device: str) -> int:
    """How many processes on one device train models fastest; measured once and written down with the setting."""
    hardware = hardware_name(device)
    path = workspace.folder / f"slots on {hardware.replace('/', ' ')}.txt"
    try:
        return max(1, int(path.read_text()))
    except (OSError, ValueError):
        slots = while_it_pays(partial(summed_speed, partial(_passes_on, workspace.folder), device))
        write_atomically(path, f"{slots}\n".encode())
        return slots


def while_it_pays(speed: Callable[[int], float]) -> int:
    """Twice as many for as long as that gives `_GAIN` times the speed.

    >>> while_it_pays({1: 1.0, 2: 1.9, 4: 2.4, 8: 2.5}.get)
    4
    """
    slots, best = 1, speed(1)
    while slots < _MOST_SLOTS and (more := speed(2 * slots)) >= _GAIN * best:
        slots, best = 2 * slots, more
    return slots


def summed_speed(setup: Callable[[int, str], Callable[[Job], float]], device: str, slots: int) -> float:
    """What so many processes do together; 0 where they do not fit. None begins before all are ready."""
    n_given = n_ready = 0
    total = 0.0

    def next_job() -> Job | None:
        nonlocal n_given
        if n_given == 2 * slots or (n_given >= slots and n_ready < slots):
            return None
        n_given += 1
        return Job(n_given - 1)

    for job, result in run_jobs(partial(setup, slots), next_job, [device] * slots):
        if isinstance(result, Lost):
            return 0.0
        n_ready += job.number < slots
        total += result
    return total


def _passes_on(folder: Path, slots: int, device: str) -> Callable[[Job], float]:
    """The jobs of one process: the first only says that it is ready; the second gives training passes a second over
    some images, by the setting's recipe."""
    workspace = reopen(folder)
    retain, fit = workspace.splits.retain, workspace.recipe().fit
    data = as_dataset(retain.take(np.arange(min(_N_IMAGES, len(retain))))).to(device)
    net, counts = workspace.net().to(device), workspace.class_counts()
    fit(net, data, 1.0, counts)  # the first pass loads kernels
    synchronize(device)

    def passes(job: Job) -> float:
        start, n_passes = time.perf_counter(), 0
        while job.number >= slots and time.perf_counter() - start < _MEASURED_S:
            fit(net, data, 1.0, counts)
            synchronize(device)
            n_passes += 1
        return n_passes / (time.perf_counter() - start)

    return passes
