"""The plan of steps per checkpoint: measured once, written down once, only ever lowered."""

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn

from kit.budget import format_duration
from kit.competition import Loaders
from kit.device import device_of, synchronize
from kit.errors import InputError
from kit.seeds import seed_everything

MARGIN = 1.05  # a plan that just fits on average is passed half of the time
_PROBE_STEPS = (2, 6)


@dataclass
class Plan:
    """How many steps one checkpoint may take. A method asks `plan.steps(wanted)` once and shapes its schedule to it.

    limit: the most steps granted, None for no limit; fill: grant the limit even where fewer are wanted.
    `wanted` remembers what the method asked for, None before it asked.

    >>> Plan(30).steps(40), Plan(30).steps(10), Plan(30, fill=True).steps(10)
    (30, 10, 30)
    """

    limit: int | None = None
    fill: bool = field(default=False, kw_only=True)
    wanted: int | None = field(default=None, init=False)

    def steps(self, wanted: float) -> int:
        self.wanted = max(0, math.ceil(wanted))
        if self.limit is None:
            return self.wanted
        return self.limit if self.fill else min(self.wanted, self.limit)


def planned_steps(plan: Plan | None, wanted: float) -> int:
    """The steps that `plan` grants of the wanted ones; all of them without a plan."""
    return (plan or Plan()).steps(wanted)


def planned_phases(plan: Plan | None, *wanted: float, least: Sequence[int] = ()) -> list[int]:
    """The steps that `plan` grants, shared between a method's phases in the proportion of the wanted ones.

    least: steps without which a phase gives nothing, of the first phases; a phase that would get fewer takes them from
    the one with the most to spare, and only where the grant is smaller than all of these beyond the grant.

    >>> planned_phases(Plan(6), 2, 10)
    [1, 5]
    >>> planned_phases(Plan(2), 2, 10, least=(1, 1))
    [1, 1]
    """
    floors = [*least, *[0] * (len(wanted) - len(least))]
    whole = [max(floor, math.ceil(steps)) for floor, steps in zip(floors, wanted, strict=True)]
    granted, total = planned_steps(plan, sum(whole)), max(1, sum(whole))
    ends = [granted * sum(whole[: phase + 1]) // total for phase in range(len(whole))]
    phases = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    for phase, floor in enumerate(floors):
        for _ in range(floor - phases[phase]):
            phases[phase] += 1
            spare = [steps - low for steps, low in zip(phases, floors, strict=True)]
            if max(spare) > 0:
                phases[spare.index(max(spare))] -= 1
    return phases


@dataclass(frozen=True)
class StepCost:
    """Time of one checkpoint: `fixed_s + n_steps * step_s`."""

    fixed_s: float
    step_s: float = 0.0

    def seconds(self, n_steps: int | None) -> float:
        return self.fixed_s + (n_steps or 0) * self.step_s

    def steps_within(self, seconds: float) -> int:
        """The most steps that a checkpoint of `seconds` can take; negative if not even the fixed part fits."""
        if seconds < self.fixed_s:
            return -1
        return int((seconds - self.fixed_s) / self.step_s) if self.step_s > 0 else 2**31


def mean_cost(costs: Iterable[StepCost]) -> StepCost:
    """Of several measurements, or of checkpoints of several kinds."""
    return StepCost(*map(statistics.fmean, zip(*((cost.fixed_s, cost.step_s) for cost in costs), strict=True)))


def plan_steps(
    cost: StepCost, wanted: int, n_checkpoints: int, left_s: float, *, fill: bool = False, n_parallel: int = 1
) -> int:
    """Steps per checkpoint: the wanted ones if they fit into `left_s`, else as many as fit; with `fill` as many as fit.

    n_parallel: checkpoints made at once. The cost is taken 5% higher. A method that wants no step gets none. Raises
    InputError, saying how many checkpoints fit, where one step each does not.
    """
    if left_s == math.inf:
        return wanted
    rounds, least = math.ceil(n_checkpoints / n_parallel), min(1, wanted)
    fit = cost.steps_within(left_s / (MARGIN * rounds))
    if fit < least:
        n_fit = n_parallel * int(max(0.0, left_s) / (MARGIN * max(1e-9, cost.seconds(least))))
        raise InputError(
            f"the time limit fits {min(n_fit, n_checkpoints - 1)} of {n_checkpoints} checkpoints (one takes at least "
            f"{format_duration(cost.seconds(least))}): raise the limit or make fewer"
        )
    return fit if fill and wanted else min(wanted, fit)


def measure_cost(
    method: Callable[..., nn.Module],
    model: nn.Module,
    loaders: Loaders,
    seed: int,
    *,
    fill: bool = False,
    within_s: float = 0.0,
) -> tuple[StepCost, int]:
    """Time of one checkpoint as a fixed part and a part per step, and the steps the method wants.

    Two short runs of an anytime method after one that warms up, and a longer one where `within_s` seconds hold it, of
    a quarter of the steps wanted at most; none of them is kept. fill: measure up to more steps than the method wants.
    """

    def timed(limit: int) -> tuple[int, float, int]:
        plan = Plan(limit, fill=fill)
        start = time.perf_counter()
        seed_everything(seed)
        method(copy.deepcopy(model), loaders, seed=seed, plan=plan)
        synchronize(device_of(model))
        wanted = plan.wanted or 0
        return limit if fill else min(limit, wanted), time.perf_counter() - start, wanted

    _, short, long = (timed(limit) for limit in (1, *_PROBE_STEPS))
    cost, wanted = _cost_of(short, long), long[2]
    held = cost.steps_within(within_s) if fill else min(wanted // 4, cost.steps_within(within_s))
    if cost.step_s and held > 2 * _PROBE_STEPS[1]:
        cost = _cost_of(short, timed(held))
    return cost, wanted


def _cost_of(short: tuple[int, float, int], long: tuple[int, float, int]) -> StepCost:
    """Of two runs with their steps and seconds."""
    (few, few_s, _), (many, many_s, _) = short, long
    if many == few:
        return StepCost(fixed_s=many_s)
    step_s = (many_s - few_s) / (many - few)
    if step_s <= 0:  # more steps took less time: something disturbed the shorter run, and a step costs at most this
        return StepCost(fixed_s=0.0, step_s=many_s / many)
    return StepCost(fixed_s=max(0.0, few_s - few * step_s), step_s=step_s)
