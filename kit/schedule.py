"""Which checkpoint is made next, with how many steps, how long it may take, and when the stand-in makes it.

There is one plan of steps. It is made from a measurement before the first checkpoint, written into the ledger, and
lowered where the machine became too slow for it; never raised, as an archive is one distribution.
"""

import math
import statistics
import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from kit.budget import TimeBudget, format_duration
from kit.checkpoint import OVERRUN, CheckpointJob, Outcome, Probe, ProbeJob
from kit.errors import InputError
from kit.jobs import Job, Lost
from kit.ledger import Ledger
from kit.methods import Method
from kit.plan import MARGIN, StepCost, mean_cost, plan_steps

_KNOWN = 3  # checkpoints that tell the machine's speed
_LOSSES = 3  # of one checkpoint by processes that died
_CLOSING = 4.0  # seconds to pack a checkpoint and to read it again, as a multiple of those to keep it, and to spare
_BEGINNING_S = 600.0  # at least: what a process may take before its first job
_LONGEST_S = 60.0  # and ten times the usual: what a checkpoint may take however much time is left
SLOWER = "the machine became slower"


@dataclass(frozen=True)
class Run:
    """What is known of a run. n_all: its checkpoints; n_parallel: processes that make them; epoch: batches of the
    retain set; stands_in: may another recipe make what the method cannot, and is an archive to be packed and checked at
    the end?"""

    method: Method
    ledger: Ledger
    budget: TimeBudget
    n_all: int
    n_parallel: int = 1
    epoch: int = 1
    fill: bool = False
    stands_in: bool = True

    @property
    def limited(self) -> bool:
        return self.budget.limit_s != math.inf


class Scheduler:
    """The jobs of a run, one at a time: `next_job` gives one, `note` is told what came of it.

    slowness: seconds of the checkpoints since the plan was set, as multiples of the cost measured before the first. Of
    a mixture the steps are those of the component that wants most; the others take theirs in proportion to their wish.
    """

    def __init__(self, run: Run, todo: Iterable[int]):
        self.run, self.todo = run, deque(todo)
        self.given: dict[int, float] = {}  # checkpoints being made, and when they were given out
        self.by_stand_in: dict[int, str] = {}  # checkpoints that the method failed to make, and why
        self.losses: Counter[int] = Counter()
        self.n_probes = run.n_parallel if run.limited and self.todo else 0  # to be given out
        self.probed: list[Probe] = []
        self.stand_in_s = 0.0 if run.stands_in else None  # that it takes for a step; None where nothing can stand in
        self.costs: list[StepCost] = []  # of each component, by steps of its own
        self.slowness: list[float] = []
        plans = list(run.ledger.of("plan"))
        self.steps: int | None = plans[-1]["steps"] if plans else None
        self.wanted: list[int] = (plans[0] if plans else {}).get("each", [1] * len(run.method.components))  # steps

    @property
    def n_made(self) -> int:
        return self.run.n_all - len(self.todo) - len(self.given)

    @property
    def cost(self) -> StepCost | None:
        """Of the mean checkpoint, by steps of the plan; None before it is known."""
        if len(self.costs) <= 1:
            return self.costs[0] if self.costs else None
        parts = [
            StepCost(c.fixed_s, c.step_s * n / max(1, *self.wanted))
            for c, n in zip(self.costs, self.wanted, strict=True)
        ]
        return mean_cost(parts[self.run.method.component_of(index)] for index in range(self.run.n_all))

    def _close_s(self, slow: float) -> float:
        """Seconds to pack and check the archive on a machine so many times slower than at first."""
        keep_s = max((probe.keep_s for probe in self.probed), default=0.0)
        return _CLOSING * keep_s * self.run.n_all * max(1.0, slow) if self.run.stands_in else 0.0

    def _left_s(self, slow: float = 1.0) -> float:
        """Seconds left to make checkpoints on such a machine."""
        budget = self.run.budget
        return budget.remaining_s() - min(3.0, max(0.6, 0.02 * budget.limit_s)) - self._close_s(slow)

    def next_job(self) -> Job | None:
        """None where there is nothing to begin at present."""
        if self.n_probes:
            self.n_probes -= 1
            left_s, rounds = self._left_s(), math.ceil(len(self.todo) / self.run.n_parallel)
            if left_s <= 0:
                limit = format_duration(self.run.budget.limit_s)
                raise InputError(f"{self.run.method.name}: the limit of {limit} holds no checkpoint: raise the limit")
            allowed_s = min(0.5 * left_s, max(10.0, 10 * left_s / rounds))
            return self._with_start(ProbeJob(-1, allowed_s, within_s=min(10.0, 0.03 * self.run.budget.limit_s)))
        measuring = self.run.limited and len(self.probed) < self.run.n_parallel
        if not self.todo or measuring:
            return None
        job = self._checkpoint(self.todo[0])
        self.given[self.todo.popleft()] = time.perf_counter()
        return self._with_start(job)

    def _with_start(self, job: Job) -> Job:
        """The job of a process that may have to begin first: read the data, start the device, as was done here."""
        budget = self.run.budget
        longest_s = max(_BEGINNING_S, 20 * budget.elapsed_s()) if self.run.limited else math.inf
        return replace(job, begin_s=min(longest_s, 0.9 * budget.remaining_s()))

    def note(self, job: Any, result: Outcome | Probe | Lost) -> None:
        """Take in what came of a job. Raises InputError where the run cannot go on."""
        self.given.pop(job.number, None)
        n_left = result.n_left if isinstance(result, Lost) else 0
        fewer = 0 < n_left < self.run.n_parallel
        self.run = replace(self.run, n_parallel=n_left) if fewer else self.run
        if isinstance(job, ProbeJob):
            self.n_probes += n_left > 0 and not fewer
            self._note_probe(job, result)
        elif n_left:
            self.todo.appendleft(job.number)
        elif isinstance(result, Lost):
            self._note_lost(job.number, result.reason)
        elif result.why:
            self._note_failed(job, result.why)
        elif self.run.limited:
            self._note_speed(job, result.seconds)

    def _note_probe(self, job: ProbeJob, result: Outcome | Probe | Lost) -> None:
        run, took = self.run, format_duration(job.allowed_s)
        if isinstance(result, Probe):
            self.probed.append(result)
            self.stand_in_s = result.stand_in_s if run.stands_in else None
        elif not (isinstance(result, Lost) and result.n_left):
            died = result.reason if isinstance(result, Lost) and "hung" not in result.reason else ""
            why = died or f"its first steps were not done after {took}: do less in each, or raise the limit"
            raise InputError(f"{run.method.name}: {why}")
        if not self.probed or len(self.probed) < run.n_parallel or not self.probed[-1].costs:
            return
        self.wanted = self.probed[-1].wanted
        self.costs = [mean_cost(costs) for costs in zip(*(probe.costs for probe in self.probed), strict=True)]
        cost = self.cost
        if self.steps is None:
            options = {"fill": run.fill, "n_parallel": run.n_parallel}
            wanted, each = max(self.wanted), {"each": self.wanted} if len(self.wanted) > 1 else {}
            steps = plan_steps(cost, wanted, len(self.todo), self._left_s(), **options)
            self._set_plan(steps, wanted=wanted, **each, **asdict(cost))
        elif self._left_s() < self._needed_s(cost.seconds(self.steps)):  # a run that is continued
            self._lower_plan(1.0)

    def _steps_of(self, index: int) -> int | None:
        """Of the plan, for the component that makes this checkpoint; None without a plan."""
        wanted = self.wanted[self.run.method.component_of(index)]
        return self.steps and max(min(1, wanted), self.steps * wanted // max(1, *self.wanted))

    def _seconds_of(self, index: int) -> float:
        return self.costs[self.run.method.component_of(index)].seconds(self._steps_of(index))

    def _set_plan(self, steps: int, **facts: Any) -> None:
        self.steps, self.slowness = steps, []
        self.run.ledger.append("plan", steps=steps, **facts, at_s=round(self.run.budget.elapsed_s(), 3))

    def _note_speed(self, job: CheckpointJob, seconds: float) -> None:
        """Lower the plan where the rest does not fit any more."""
        run = self.run
        if job.stands_in_for:  # its speed tells whether the method hung or the machine became slower
            slow = seconds / max(1e-9, self.stand_in_s * job.steps)
            if self.cost is None or slow < 1.5:
                return
        elif self.cost is None:  # a function that takes no plan, and its first checkpoint
            self.costs, slow = [StepCost(seconds)], 1.0
            self._refuse_or_accept(seconds)
        else:
            slow = seconds / max(1e-9, self._seconds_of(job.number))
        self.slowness.append(slow)
        mean = statistics.fmean(self.slowness)
        known = len(self.slowness) >= min(_KNOWN, len(self.todo)) or slow > 1.5  # a single one may be noise
        late = known and self._needed_s(mean * self.cost.seconds(self.steps)) > self._left_s(mean)
        if late and run.method.anytime and self.todo and self.steps:
            self._lower_plan(max(mean, statistics.fmean(self.slowness[-_KNOWN:])))

    def _lower_plan(self, slow: float) -> None:
        """The most steps below the present ones that fit on a machine so much slower; one at the least."""
        needed_s = lambda steps: self._needed_s(slow * MARGIN * self.cost.seconds(steps))  # noqa: E731
        fit = bisect_right(range(1, self.steps + 1), self._left_s(slow), key=needed_s)
        if (steps := max(1, fit)) < self.steps:
            self._set_plan(steps, lowered=SLOWER, slower=round(slow, 3))

    def _needed_s(self, each_s: float) -> float:
        """Seconds until the last checkpoint is made, if each takes `each_s`: processes take turns as they get free."""
        now = time.perf_counter()
        free = [max(0.0, each_s - (now - since)) for since in self.given.values()]
        free = sorted(free + [0.0] * (self.run.n_parallel - len(free)))
        rounds, turn = divmod(len(self.todo) - 1, len(free))
        return free[turn] + (rounds + 1) * each_s

    def _checkpoint(self, index: int) -> CheckpointJob:
        """The job of a checkpoint: by the method, if after it there is time for the stand-in to make the others."""
        run, why, proven = self.run, self.by_stand_in.get(index, ""), self.run.stands_in and self.n_made > 0
        if not run.limited:
            return CheckpointJob(index, steps=None if why else self._steps_of(index), stands_in_for=why, proven=proven)
        slow = max(statistics.fmean(self.slowness), self.slowness[-1]) if self.slowness else 1.0  # in doubt the last's
        left_s, later = self._left_s(slow), math.ceil((len(self.todo) - 1) / run.n_parallel)
        if run.budget.remaining_s() + left_s < 0:
            raise InputError(
                f"{run.method.name}: the limit of {format_duration(run.budget.limit_s)} is used up with {self.n_made} "
                f"of {run.n_all} checkpoints made, which are kept: the same command continues"
            )
        pace_s = slow * self._seconds_of(index) if self.cost else 0.0
        if (step_s := self.stand_in_s) is None:
            allowed_s = min(10 * left_s / (later + 1), max(left_s, 0.1))
            return CheckpointJob(index, allowed_s, self._steps_of(index), proven=proven)
        step_s *= max(1.0, slow)
        epoch = max(1, min(run.epoch, int(pace_s / max(1e-9, 4 * step_s))))  # the stand-in takes a quarter of the time
        allowed_s = self._allowed_s(left_s, pace_s, later, step_s, slow)
        if not why and self.n_made and (pace_s + 1.1 * later * step_s * epoch > left_s or allowed_s < pace_s):
            why = SLOWER
        if not why:
            return CheckpointJob(index, allowed_s, self._steps_of(index), proven=proven)
        steps = max(1, min(epoch, int(left_s / (1.15 * (later + 1) * step_s))))
        return CheckpointJob(index, max(1.0, left_s - later * step_s), steps, why, True)

    def _allowed_s(self, left_s: float, pace_s: float, later: int, step_s: float, slow: float) -> float:
        """Seconds after which a checkpoint is interrupted. A machine that has not finished it after t seconds is at
        least t / pace times slower; then the stand-in must still make the `later` ones, and the archive be closed."""
        if not pace_s:  # the first of a function that takes no plan
            return min(left_s - 1.5 * later * step_s, 10 * left_s / (later + 1))
        close_s = self._close_s(slow)
        rest_s = 1.3 * later * step_s + close_s
        return min((left_s + close_s) / (1 + rest_s / pace_s), max(_LONGEST_S, 10 * pace_s))

    def _note_failed(self, job: CheckpointJob, why: str) -> None:
        self.todo.appendleft(job.number)
        if job.stands_in_for:
            self.losses[job.number] += 1
            if why != OVERRUN or self.losses[job.number] == _LOSSES:
                raise InputError(f"{why}: {self.n_made} checkpoints are kept")
        elif self.stand_in_s is not None and (job.proven or self.run.method.anytime):
            self.by_stand_in[job.number] = why
        elif why != OVERRUN:
            raise InputError(f"{why}: {self.n_made} checkpoints are kept")
        else:
            raise InputError(
                f"{self.run.method.name}: checkpoint {job.number} was not done after {format_duration(job.allowed_s)}"
                f"{', the first of all' * (self.n_made == 0)}: do less in each, or raise the limit"
            )

    def _note_lost(self, index: int, reason: str) -> None:
        """Put a checkpoint back that went down with its process."""
        self.todo.appendleft(index)
        self.losses[index] += 1
        self.run.ledger.append("lost", index=index, reason=reason)
        if not self.n_made and self.losses.total() >= _LOSSES:
            what = "use less memory" if "memory" in reason else "the reason is printed above"
            raise InputError(f"checkpoint {index}: {reason}, {_LOSSES} times, and none is made: {what}")
        if self.losses[index] > 2 * _LOSSES or (self.losses[index] == _LOSSES and not self.run.stands_in):
            raise InputError(f"checkpoint {index}: {reason} whatever makes it: {self.n_made} are kept")
        if self.losses[index] == _LOSSES:
            self.by_stand_in[index] = "its process died or hung each time"

    def _refuse_or_accept(self, pace_s: float) -> None:
        """A function that cannot be told to hurry fits the limit or does not."""
        run, left_s, epochs = self.run, self._left_s(), self.run.method.settings.get("epochs")
        if self._needed_s(pace_s) <= left_s:
            return
        n_fit = min(run.n_all - 1, self.n_made + len(self.given) + run.n_parallel * int(max(0.0, left_s) / pace_s))
        whole_s = pace_s * math.ceil(run.n_all / run.n_parallel)
        share = 0.97 * max(0.0, left_s + run.budget.elapsed_s()) / whole_s  # another method begins anew
        advice = f"do less in each, for instance {share:.0%} of its epochs"
        if isinstance(epochs, int | float) and epochs * share >= (1 if isinstance(epochs, int) else 1e-3):
            advice = f"lower epochs to {int(epochs * share) if isinstance(epochs, int) else f'{epochs * share:.2g}'}"
        raise InputError(
            f"{run.method.name}: fits {n_fit} of {run.n_all} checkpoints in {format_duration(run.budget.limit_s)} "
            f"({format_duration(pace_s)} each): {advice}; {self.n_made} are kept"
        )
