"""What is asked of the machine: devices, cores, threads, memory. Nothing else here calls an accelerator's own API."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module

import torch
from torch import nn

from kit.errors import InputError, first_line


def device_of(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def accelerators() -> list[str]:
    """Every GPU by name."""
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name, `auto` for the GPU where there is one; checked to run a kernel of this torch build."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        (torch.ones(2, device=device) + 1).sum().item()
    except (RuntimeError, AssertionError) as error:
        found = ", ".join(accelerators())
        hint = f"there are {found}" if found else "switch the accelerator on, or choose the device cpu"
        if "no kernel image" in str(error):
            capability = "".join(map(str, torch.cuda.get_device_capability()))
            hint = f"this torch has kernels for {torch.cuda.get_arch_list()}, the GPU is sm_{capability}"
        raise InputError(f"device {name!r} cannot be used ({first_line(error)}): {hint}") from error
    return device


def _asked(device: torch.device | str, name: str) -> int | None:
    """What a function of torch's module for this kind of device says, such as torch.cuda; None where there is none."""
    kind = torch.device(device).type
    if kind == "cpu":
        return None
    api = getattr(torch, kind, None) or import_module(f"torch.{kind}")  # torch 2.0 has mps only once it is imported
    with getattr(api, "device", nullcontext)(device):
        return getattr(api, name, lambda: None)()


def synchronize(device: torch.device | str) -> None:
    """Wait for the device's queued work, so that a clock read afterwards counts it."""
    _asked(device, "synchronize")


def empty_cache(device: torch.device | str) -> None:
    """Give memory that no tensor uses back to the device."""
    _asked(device, "empty_cache")


def is_out_of_memory(error: BaseException) -> bool:
    """Did memory run out, of the machine or of its GPU?"""
    signs = ("out of memory", "MemoryError", "allocate memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
    told = any(text in str(error) for text in signs)
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or told


def peak_bytes(device: torch.device | str) -> int:
    """The most that this process held so far, on the GPU where that does the work; 0 where nobody tells."""
    if (found := _asked(device, "max_memory_allocated")) is not None:
        return found
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def hardware_name(device: str) -> str:
    """What the device is called by its maker, where it tells."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def n_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_format(device: torch.device) -> torch.memory_format:
    """The order of a batch's axes in which convolutions are fast: channels last, but not on a GPU whose float32 takes
    no tensor cores (before Ampere, as P100 and T4; https://github.com/pytorch/pytorch/issues/44943)."""
    old = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
    return torch.contiguous_format if old else torch.channels_last


@contextmanager
def reproducible(device: str = "cpu") -> Iterator[None]:
    """Inside, the same seed gives the same bits: one thread on a CPU, where a sum split over threads is rounded
    differently (and several threads that wait for each other beside other work take many times as long); on a GPU the
    algorithms of cuDNN that always add in the same order, and "cuda" without a number is this one."""
    before = torch.get_num_threads(), torch.backends.cudnn.deterministic
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    try:
        with torch.cuda.device(device) if device.startswith("cuda") else nullcontext():
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.deterministic = before[1]
