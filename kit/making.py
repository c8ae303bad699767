"""Who makes a checkpoint and out of what: tasks, what comes of them, and the faster recipe that can stand in."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from kit.budget import OverrunError, Plan, StepCost, alarm, format_duration, planned_steps
from kit.checkpoint import Made, make_one, measure_cost
from kit.competition import Loaders
from kit.errors import BrokenModelError, InputError
from kit.methods import Method, method_of
from kit.seeds import checkpoint_seed
from kit.training import fine_tune


def short_fine_tuning(
    net: nn.Module,
    retain_loader: Iterable[Any],
    forget_loader: Iterable[Any],
    val_loader: Iterable[Any],
    *,
    seed: int,
    plan: Plan | None = None,
) -> nn.Module:
    """The faster recipe that stands in where a method fails or takes too long: at most one epoch of fine-tuning."""
    torch.manual_seed(seed)
    return fine_tune(net, retain_loader, planned_steps(plan, len(retain_loader)), lr=0.001)


@dataclass(frozen=True)
class Task:
    """One checkpoint to make. proven: the method has made one before, so that a failure is no mistake in its code.

    spare: steps of the faster recipe, should it have to stand in; allowed_s: when it has to, at the latest; why: it
    makes this checkpoint from the start, for this reason. probe_s: nothing to make, only to measure, with about so
    many seconds.
    """

    index: int
    plan: Plan | None = None
    spare: Plan | None = None
    allowed_s: float = math.inf
    proven: bool = False
    why: str = ""
    probe_s: float = 0.0


@dataclass(frozen=True)
class Probe:
    """Measured before the first checkpoint: the method's cost and wanted steps where it takes a plan, and the cost of
    a step of the faster recipe, infinite where that cannot run on these data."""

    cost: StepCost | None
    wanted: int
    spare_s: float


@dataclass(frozen=True)
class Lost:
    """A task whose worker died or hung."""

    task: Task
    reason: str


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes on the CPU with one thread inside: a sum split over threads is rounded differently, and several
    threads that wait for each other beside other work make a step take many times its time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


NextTask = Callable[[], Task | None]


class Crew(Protocol):
    """Whoever makes checkpoints, `n_parallel` at once. `run` asks for a task whenever one can be begun."""

    n_parallel: int

    def run(self, next_task: NextTask) -> Iterator[Made | Probe | Lost]: ...


@dataclass(frozen=True)
class Maker:
    """What makes the checkpoints of a run in one process."""

    method: Method
    model: nn.Module
    loaders: Loaders
    seed: int = 0
    dtype: torch.dtype | None = None
    fill: bool = False
    n_parallel: int = 1

    def run(self, next_task: NextTask) -> Iterator[Made | Probe]:
        """Checkpoints one after the other in this process."""
        while task := next_task():
            yield self(task)

    def __call__(self, task: Task) -> Made | Probe:
        if task.probe_s:
            return self._probe(task.probe_s)
        start, why = time.perf_counter(), task.why
        if not why:
            try:
                with alarm(task.allowed_s):
                    return self._make(self.method, task.index, task.plan, task.proven)
            except OverrunError:
                why = "it took the time that the others need"
                if not (task.proven or self.method.anytime):
                    raise InputError(
                        f"{self.method.name}: checkpoint {task.index} was not done after "
                        f"{format_duration(task.allowed_s)}, the first of all: do less in each, or raise the limit"
                    ) from None
            except BrokenModelError as error:
                if not task.proven:
                    raise
                why = str(error)
        made = self._make(method_of(short_fine_tuning), task.index, task.spare, True)
        return replace(made, why=why, seconds=time.perf_counter() - start, recipe_s=made.seconds)

    def _make(self, method: Method, index: int, plan: Plan | None, retry: bool) -> Made:
        data = self.model, self.loaders
        return make_one(method, *data, seed=self.seed, index=index, plan=plan, dtype=self.dtype, retry=retry)

    def _probe(self, within_s: float) -> Probe:
        cost, wanted = None, 0
        try:
            if self.method.anytime:
                seed, options = checkpoint_seed(self.seed, -1), {"fill": self.fill, "within_s": within_s}
                cost, wanted = measure_cost(self.method, self.model, self.loaders, seed, **options)
        except InputError:
            raise
        except Exception as error:  # whatever a participant's function raises
            raise InputError(
                f"{self.method.name}: failed at its first steps: {type(error).__name__}: {error}"
            ) from error
        try:
            made = [self._make(method_of(short_fine_tuning), -1, Plan(1), False) for _ in range(2)]
        except InputError:
            return Probe(cost, wanted, math.inf)
        return Probe(cost, wanted, min(one.seconds for one in made))
