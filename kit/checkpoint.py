"""One checkpoint: from a copy of the original with its own seed, tried again where it fails; and what stands in."""

import copy
import gc
import io
import statistics
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kit.archive import serialize
from kit.budget import OverrunError, alarm
from kit.competition import Loaders, load_tensors, state_difference
from kit.device import device_of, empty_cache, is_out_of_memory, synchronize
from kit.errors import BrokenModelError, InputError, first_line
from kit.jobs import Job
from kit.ledger import append, write_atomically
from kit.methods import Method, method_of
from kit.plan import Plan, StepCost, measure_cost, planned_steps
from kit.seeds import checkpoint_seed, seed_everything
from kit.training import fine_tune

_ATTEMPTS = 3
OVERRUN = "it took the time that the others need"


def short_fine_tuning(
    net: nn.Module, retain: Iterable[Any], forget: Iterable[Any], val: Iterable[Any], *, seed: int, plan: Plan
) -> nn.Module:
    """The stand-in where a method fails or takes too long: at most one epoch of fine-tuning."""
    torch.manual_seed(seed)
    return fine_tune(net, retain, planned_steps(plan, len(retain)), lr=0.001)


STAND_IN = method_of(short_fine_tuning)


@dataclass(frozen=True)
class CheckpointJob(Job):
    """steps: what its plan grants, None for no plan. stands_in_for: why the stand-in makes it, empty for the method.

    proven: the method has made one before, so that a failure is no mistake in its code.
    """

    steps: int | None = None
    stands_in_for: str = ""
    proven: bool = False


@dataclass(frozen=True)
class Outcome:
    """A checkpoint was made, in so many seconds, or was not; why not, empty where it was."""

    seconds: float = 0.0
    why: str = ""


@dataclass(frozen=True)
class ProbeJob(Job):
    """Measure what a checkpoint costs, for about `within_s` seconds."""

    within_s: float = 0.0


@dataclass(frozen=True)
class Probe:
    """What was measured: cost and wanted steps of each of the method's components, none where it takes no plan; the
    stand-in's cost of a step, None where it cannot run; seconds to keep a checkpoint."""

    costs: list[StepCost]
    wanted: list[int]
    stand_in_s: float | None
    keep_s: float


def write_checkpoint(folder: Path, ledger: Path, dtype: torch.dtype | None, index: int, net: nn.Module, **facts: Any):
    """A file of `folder` that appears complete, after a line in the ledger. Below index 0 nothing is left behind."""
    data = stored(net, dtype)
    if index < 0:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(data)
        return
    append(ledger, "checkpoint", index=index, **facts, crc32=zlib.crc32(data))
    write_atomically(checkpoint_path(folder, index), data)


def stored(net: nn.Module, dtype: torch.dtype | None) -> bytes:
    """A checkpoint as it is written, once it was read back as the competition reads it."""
    data, fault = serialize(net.state_dict(), dtype), ""
    try:
        fault = state_difference(load_tensors(io.BytesIO(data)), net.state_dict())
    except Exception as error:  # torch raises many kinds for what it does not load
        fault = first_line(error)
    if fault:
        raise InputError(f"a checkpoint cannot be read back as it was stored ({fault}): keep to tensors of torch's own")
    return data


def checkpoint_path(folder: Path, index: int) -> Path:
    return folder / f"unlearned_checkpoint_{index}.pth"


@dataclass(frozen=True)
class Maker:
    """What does the jobs of a schedule in one process. keep(index, net, **facts): puts a checkpoint where it belongs,
    as `write_checkpoint` does."""

    method: Method
    keep: Callable[..., None]
    model: nn.Module
    loaders: Loaders
    seed: int = 0
    fill: bool = False

    def __call__(self, job: CheckpointJob | ProbeJob) -> Outcome | Probe:
        try:
            with alarm(job.allowed_s):
                return self._probe(job.within_s) if isinstance(job, ProbeJob) else self._make(job)
        except OverrunError:
            return Outcome(why=OVERRUN)
        except BrokenModelError as error:
            if job.proven:
                return Outcome(why=str(error))
            raise

    def _unlearn(self, method: Method, index: int, plan: Plan, **options: Any) -> tuple[nn.Module, int]:
        return unlearn_once(method, self.model, self.loaders, seed=self.seed, index=index, plan=plan, **options)

    def _make(self, job: CheckpointJob) -> Outcome:
        start, why = time.perf_counter(), job.stands_in_for
        method, plan = STAND_IN if why else self.method, Plan(job.steps, fill=self.fill)
        net, attempt = self._unlearn(method, job.number, plan, retry=job.proven)
        facts = {"recipe": method.name, "why": why} if why else {}
        if not why and len(parts := method.components) > 1:
            facts = {"recipe": parts[method.component_of(job.number)].name}
        seconds = time.perf_counter() - start
        self.keep(job.number, net, attempt=attempt, steps=job.steps, seconds=round(seconds, 6), **facts)
        return Outcome(time.perf_counter() - start)

    def _probe(self, within_s: float) -> Probe:
        """Nothing of it is kept."""
        costs, wanted, stand_in_s = [], [], None
        keep_s = statistics.fmean(_seconds(self.keep, -1, self.model) for _ in range(2))
        parts = self.method.components if self.method.anytime else ()
        for part in parts:
            measured = part, self.model, self.loaders, checkpoint_seed(self.seed, -1)
            try:
                cost, steps = measure_cost(*measured, fill=self.fill, within_s=within_s / len(parts))
            except InputError:
                raise
            except (Exception, SystemExit) as error:  # whatever a participant's function raises
                fault = f"{type(error).__name__}: {error}"
                raise InputError(f"{part.name}: failed at its first steps: {fault}") from error
            costs.append(StepCost(cost.fixed_s + keep_s, cost.step_s))
            wanted.append(steps)
        with suppress(InputError):
            stand_in_s = keep_s + min(_seconds(self._unlearn, STAND_IN, -1, Plan(1)) for _ in range(2))
        return Probe(costs, wanted, stand_in_s, keep_s)


def _seconds(function: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def unlearn_once(
    method: Method,
    model: nn.Module,
    loaders: Loaders,
    *,
    seed: int,
    index: int,
    plan: Plan | None = None,
    retry: bool = False,
) -> tuple[nn.Module, int]:
    """Checkpoint `index` of the run `seed`: a net unlearned from a copy of `model`, and the attempt that gave it.

    Its bits depend on model, data, seed, index and plan alone. A result with NaN or infinite weights, or with other
    tensors than the model's, is thrown away and tried again with a fresh seed; where memory ran out, with the same
    seed; after three attempts BrokenModelError. An exception of the method is an InputError at once, as a mistake in
    its code is no better the next time; with `retry` it is tried again like a broken result.
    """
    method = method.components[method.component_of(index)]
    attempt, fault = 0, ""
    for _ in range(_ATTEMPTS):
        attempt_seed = checkpoint_seed(seed, index, attempt)
        seed_everything(attempt_seed)
        net, short_of_memory = None, False
        try:
            with torch.enable_grad():  # whatever a method that ended in the middle of an evaluation left behind
                net = method(copy.deepcopy(model), loaders, seed=attempt_seed, plan=plan)
        except InputError:
            raise
        except (Exception, SystemExit) as error:  # whatever a participant's function raises
            frames = traceback.extract_tb(error.__traceback__)
            where = ([f for f in frames if "-packages" not in f.filename] or frames)[-1]  # the method's own line
            fault = f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})"
            short_of_memory = is_out_of_memory(error)
            if not (retry or short_of_memory):
                raise InputError(f"{method.name}: checkpoint {index} failed: {fault}") from error
        if net is not None:
            synchronize(device_of(model))
            fault = state_difference(net.state_dict(), model.state_dict()) or ""
            if not fault:
                return net, attempt
        attempt += not short_of_memory
        if short_of_memory:  # here the failed attempt's frames are gone, and with them what they held
            gc.collect()
            empty_cache(device_of(model))
    raise BrokenModelError(
        f"{method.name}: checkpoint {index} is no model in {_ATTEMPTS} attempts ({fault}): "
        "lower the learning rate or the batch size, and return the net itself or nothing"
    )
