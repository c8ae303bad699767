"""The emission: N unlearned checkpoints, each from the original weights with its own seed, in one archive in time."""

import copy
import math
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from kit import __version__
from kit.budget import Plan, StepCost, TimeBudget, format_duration, plan_steps, synchronize
from kit.competition import ARCHIVE_NAME, N_CHECKPOINTS, Loaders, state_difference
from kit.errors import BrokenModelError, InputError
from kit.ledger import FILE_NAME, Ledger
from kit.methods import Method, method_of
from kit.preflight import archive_bytes, check_output
from kit.seeds import checkpoint_seed, seed_everything
from kit.submission import Archive, Check, Entry, serialize, state_hash, verify
from kit.training import device_of

_ATTEMPTS = 3
_PROBE_STEPS = (2, 6)


@dataclass(frozen=True)
class Made:
    """A checkpoint as bytes, the attempt that gave it and the seconds that its making took."""

    index: int
    attempt: int
    data: bytes
    seconds: float


Tasks = Iterator[tuple[int, Plan | None]]  # index and plan of each checkpoint, asked for one at a time
Maker = Callable[[Tasks], Iterator[Made]]


@dataclass(frozen=True)
class Emission:
    """What a run left behind: the archive, the checks it passed, seconds in all and per checkpoint."""

    archive: Path
    checks: list[Check]
    seconds: float
    checkpoint_s: list[float]
    steps: int | None


def unlearn_once(
    method: Method, model: nn.Module, loaders: Loaders, *, seed: int, index: int, plan: Plan | None = None
) -> tuple[nn.Module, int]:
    """Checkpoint `index` of the run `seed`: a net unlearned from a copy of `model`, and the attempt that gave it.

    Its bits depend on model, data, seed, index and plan alone. A result with NaN or infinite weights, or with other
    tensors than the model's, is thrown away and tried again with a fresh seed; after three attempts BrokenModelError.
    """
    device = device_of(model)
    difference = None
    for attempt in range(_ATTEMPTS):
        attempt_seed = checkpoint_seed(seed, index, attempt)
        seed_everything(attempt_seed)
        try:
            net = method(copy.deepcopy(model), loaders, seed=attempt_seed, plan=plan)
        except (InputError, MemoryError):
            raise
        except Exception as error:  # whatever a participant's function raises
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise InputError(
                f"{method.name}: checkpoint {index} failed at {where.filename}, line {where.lineno}: "
                f"{type(error).__name__}: {error}"
            ) from error
        synchronize(device)
        difference = state_difference(net.state_dict(), model.state_dict())
        if difference is None:
            return net, attempt
    raise BrokenModelError(
        f"{method.name}: checkpoint {index} is no model in {_ATTEMPTS} attempts ({difference}): "
        "lower the learning rate, and return the net itself or nothing"
    )


def make_one(
    method: Method,
    model: nn.Module,
    loaders: Loaders,
    *,
    seed: int,
    index: int,
    plan: Plan | None = None,
    dtype: torch.dtype | None = None,
) -> Made:
    """`unlearn_once`, timed and as bytes."""
    start = time.perf_counter()
    net, attempt = unlearn_once(method, model, loaders, seed=seed, index=index, plan=plan)
    data = serialize(net.state_dict(), dtype)
    return Made(index, attempt, data, time.perf_counter() - start)


def measure_cost(method: Method, model: nn.Module, loaders: Loaders, seed: int) -> tuple[StepCost, int]:
    """Time of one checkpoint as a fixed part and a part per step, and the steps the method wants.

    Two short runs of an anytime method after one that warms up; none of them is kept.
    """
    seconds, granted = [], []
    plan = Plan()
    for limit in (1, *_PROBE_STEPS):
        plan = Plan(limit)
        start = time.perf_counter()
        seed_everything(seed)
        method(copy.deepcopy(model), loaders, seed=seed, plan=plan)
        synchronize(device_of(model))
        seconds.append(time.perf_counter() - start)
        granted.append(min(limit, plan.wanted or 0))
    wanted = plan.wanted or 0
    if granted[2] == granted[1]:
        return StepCost(fixed_s=seconds[2], step_s=0.0), wanted
    step_s = max(0.0, (seconds[2] - seconds[1]) / (granted[2] - granted[1]))
    return StepCost(fixed_s=max(0.0, seconds[1] - granted[1] * step_s), step_s=step_s), wanted


def emit(
    unlearn: Method | Callable[..., Any],
    model: nn.Module,
    loaders: Loaders,
    *,
    out: Path,
    n_checkpoints: int = N_CHECKPOINTS,
    budget: TimeBudget | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    fill: bool = False,
    make: Maker | None = None,
    n_parallel: int = 1,
    progress: bool = True,
) -> Emission:
    """Write `out/submission.zip` with `n_checkpoints` unlearned checkpoints inside the time budget.

    unlearn: a Method, or any function of the four arguments. model: the original, on the device to work on; it is
    left as it came. dtype: type of the stored floating-point tensors, None for the model's own. fill: take as many
    steps as fit where more time is left than the method wants. make, n_parallel: who makes the checkpoints and how
    many at once, in any order; by default this process, one after the other.

    An interrupted run is continued by the same call: `out/ledger.jsonl` holds its plan and what is done. Raises
    InputError where the limit cannot hold the checkpoints, where `out` holds another run, and where the method fails.
    """
    if n_checkpoints < 1:
        raise InputError(f"n_checkpoints is {n_checkpoints}: a submission needs at least 1")
    method = unlearn if isinstance(unlearn, Method) else method_of(unlearn)
    out = check_output(out, archive_bytes(model, n_checkpoints, dtype))
    run = _Run(method, model, loaders, n_checkpoints, budget or TimeBudget(), seed, dtype, fill, n_parallel)
    ledger = Ledger(out / FILE_NAME)
    _open_run(
        ledger,
        version=__version__,
        **method.identity,
        model=state_hash(model.state_dict()),
        n_examples=[len(loader.dataset) for loader in loaders],
        n_checkpoints=n_checkpoints,
        seed=seed,
        dtype=str(dtype),
        fill=fill,
        device=device_of(model).type,
    )
    archive_path = out / ARCHIVE_NAME
    if ledger.first("end") is None or not archive_path.exists():
        _write_checkpoints(run, ledger, archive_path, make or run.make, progress)
    checks = verify(archive_path, n_checkpoints, model.state_dict(), progress=progress)
    plans = list(ledger.of("plan"))
    return Emission(
        archive=archive_path,
        checks=checks,
        seconds=run.budget.elapsed_s(),
        checkpoint_s=[line["seconds"] for line in ledger.of("checkpoint")],
        steps=plans[-1]["steps"] if plans else None,
    )


@dataclass(frozen=True)
class _Run:
    """What is asked of an emission."""

    method: Method
    model: nn.Module
    loaders: Loaders
    n_checkpoints: int
    budget: TimeBudget
    seed: int
    dtype: torch.dtype | None
    fill: bool
    n_parallel: int

    def make(self, tasks: Tasks) -> Iterator[Made]:
        for index, plan in tasks:
            yield make_one(
                self.method, self.model, self.loaders, seed=self.seed, index=index, plan=plan, dtype=self.dtype
            )


def _open_run(ledger: Ledger, **identity: Any) -> None:
    """Begin the ledger of a run, or check that it is the ledger of this run."""
    start = ledger.first("start")
    if start is None:
        ledger.append("start", **identity, time=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        return
    if changed := [name for name, value in identity.items() if start.get(name) != value]:
        name = changed[0]
        raise InputError(
            f"{ledger.path}: belongs to another run ({name} {start.get(name)!r}, now {identity[name]!r}): "
            "choose another output folder or delete this one"
        )


def _write_checkpoints(run: _Run, ledger: Ledger, archive_path: Path, make: Maker, progress: bool) -> None:
    n_checkpoints, budget = run.n_checkpoints, run.budget
    entries = [
        Entry(**{name: line[name] for name in ("index", "offset", "size", "crc32")}) for line in ledger.of("checkpoint")
    ]
    if entries and not archive_path.with_name(archive_path.name + ".partial").exists():
        if len(entries) == n_checkpoints and archive_path.exists():  # killed between its naming and the last line
            ledger.append("end", seconds=round(budget.elapsed_s(), 3))
            return
        raise InputError(f"{archive_path}.partial: is missing although the ledger names it: delete {ledger.path}")
    archive = Archive(archive_path, entries)
    todo = sorted(set(range(n_checkpoints)) - {entry.index for entry in entries})
    pace = _Pace(run, ledger)
    n_done, bar = len(entries), {"desc": run.method.name, "total": n_checkpoints, "disable": not progress}
    try:
        pace.prepare(len(todo))
        made_so_far = make((index, pace.plan()) for index in todo)
        for made in tqdm(made_so_far, initial=n_done, **bar):
            start = time.perf_counter()
            entry = archive.add(made.index, made.data)
            seconds = made.seconds + time.perf_counter() - start
            ledger.append(
                "checkpoint", seed=run.seed, attempt=made.attempt, seconds=round(seconds, 6), **entry.__dict__
            )
            n_done += 1
            pace.after_checkpoint(seconds, n_checkpoints - n_done)
    except BaseException:
        archive.suspend()
        raise
    archive.close()
    ledger.append("end", seconds=round(budget.elapsed_s(), 3))


class _Pace:
    """The plan of steps per checkpoint, and its revision when the machine falls behind it."""

    def __init__(self, run: _Run, ledger: Ledger):
        self.run, self.ledger = run, ledger
        self.steps: int | None = None
        self.cost: StepCost | None = None
        self.recent: list[float] = []

    def plan(self) -> Plan | None:
        return None if self.steps is None else Plan(self.steps, fill=self.run.fill)

    def prepare(self, n_left: int) -> None:
        """Take the ledger's plan up, or make one from measured speed. Without a limit none is needed."""
        run = self.run
        if recorded := list(self.ledger.of("plan")):
            self.steps = recorded[-1]["steps"]
            self.cost = StepCost(recorded[-1]["fixed_s"], recorded[-1]["step_s"])
        if run.budget.limit_s == math.inf or not n_left:
            return
        run.budget.reserve_s = self._reserve_s()
        if run.method.anytime and not recorded:
            cost, wanted = measure_cost(run.method, run.model, run.loaders, checkpoint_seed(run.seed, -1))
            self.cost = StepCost(cost.fixed_s + self._serialize_s, cost.step_s)
            steps = plan_steps(self.cost, wanted, self._rounds(n_left), run.budget.remaining_s(), fill=run.fill)
            self._record(steps, wanted=wanted)

    def _rounds(self, n_left: int) -> int:
        """How many checkpoints are made one after the other."""
        return math.ceil(n_left / self.run.n_parallel)

    def _reserve_s(self) -> float:
        """Time to close and verify the archive, from one checkpoint written and read back; half as much again."""
        state = self.run.model.state_dict()
        start = time.perf_counter()
        serialize(state, self.run.dtype)
        self._serialize_s = time.perf_counter() - start
        state_hash(state)
        once = 2 * (time.perf_counter() - start)
        return 0.5 + 1.5 * once * self.run.n_checkpoints

    def _record(self, steps: int, **facts: Any) -> None:
        assert self.cost is not None
        self.steps = steps
        self.ledger.append(
            "plan",
            steps=steps,
            fixed_s=self.cost.fixed_s,
            step_s=self.cost.step_s,
            at_s=round(self.run.budget.elapsed_s(), 3),
            **facts,
        )

    def after_checkpoint(self, seconds: float, n_left: int) -> None:
        """Compare the time left with the time the rest will take; revise the plan, or stop with what to do."""
        run = self.run
        if run.budget.limit_s == math.inf or not n_left:
            return
        self.recent = [*self.recent[-2:], seconds]
        pace_s = sum(self.recent) / len(self.recent)
        remaining_s = run.budget.remaining_s()
        if pace_s * self._rounds(n_left) <= remaining_s:
            return
        if self.cost is None or self.steps is None:
            n_done = run.n_checkpoints - n_left
            fits = n_done + run.n_parallel * int(max(0.0, remaining_s) / pace_s)
            raise InputError(
                f"{run.method.name}: fits {fits} of {run.n_checkpoints} checkpoints in "
                f"{format_duration(run.budget.limit_s)} ({format_duration(pace_s)} each): do less in each, for "
                f"instance {fits / run.n_checkpoints:.0%} of its epochs; {n_done} are kept"
            )
        slower = max(1.0, pace_s / self.cost.seconds(self.steps))
        self.cost = StepCost(self.cost.fixed_s * slower, self.cost.step_s * slower)
        steps = plan_steps(self.cost, self.steps, self._rounds(n_left), remaining_s)
        if steps < self.steps:
            self._record(steps, revised="the machine became slower", slower=round(slower, 3))
            self.recent = []
