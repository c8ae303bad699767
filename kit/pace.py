"""Which checkpoint is made next, with how many steps, and by what once time or the method fails."""

import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

from kit.budget import Plan, StepCost, TimeBudget, format_duration, plan_steps
from kit.checkpoint import Made
from kit.errors import InputError
from kit.ledger import Ledger
from kit.making import Crew, Lost, Maker, Probe, Task
from kit.submission import serialize, state_hash

_RECENT = 3  # checkpoints that tell the machine's present speed
_LOSSES = 3  # of one checkpoint by workers that died
_LONGEST_S = 60.0  # and ten times the usual: what a checkpoint may take however much time is left


class Pace:
    """The tasks of a run, one at a time: the plan, its revision, the faster recipe where there is no other way.

    todo: checkpoints still to be made; n_checkpoints: of the whole run.
    """

    def __init__(
        self,
        maker: Maker,
        crew: Crew,
        ledger: Ledger,
        budget: TimeBudget,
        todo: Iterable[int],
        n_checkpoints: int,
        fill: bool,
    ):
        self.maker, self.crew, self.ledger, self.budget = maker, crew, ledger, budget
        self.todo, self.n_checkpoints, self.fill = deque(todo), n_checkpoints, fill
        self.given: dict[int, Task] = {}
        self.begun: dict[int, float] = {}  # seconds of the budget at which each was given
        self.losses: Counter[int] = Counter()
        self.n_made = self.n_before = n_checkpoints - len(self.todo)
        self.limited = budget.limit_s != math.inf
        self.steps: int | None = None
        self.growing = fill  # a plan of this run may take more steps; one that is continued stays what it was
        self.cost: StepCost | None = None  # as measured at the beginning
        self.slowness: list[float] = []  # of recent checkpoints: seconds as a multiple of that cost
        self.usual = self.planned_for = 1.0  # slowness of the first checkpoints, and the one the plan was made for
        self.n_known = 0  # of them, those that the plan was made from
        self.failures = 0  # of the method in a row
        self.spare_s, self.spare_steps, self.why = math.inf, 1, ""
        self.first_spare_s, self.check_s, self.least_s = math.inf, 0.0, 0.0

    def prepare(self) -> None:
        """Take the ledger's plan up, or make one from measured speed. Without a limit none is needed."""
        if recorded := list(self.ledger.of("plan")):
            self.steps, self.growing = recorded[-1]["steps"], False
        if not (self.limited and self.todo):
            return
        limit_s, serialize_s = self.budget.limit_s, self._closing()
        probes = deque(Task(-1, probe_s=min(10.0, 0.01 * limit_s)) for _ in range(self.crew.n_parallel))
        measured = [
            one for one in self.crew.run(lambda: probes.popleft() if probes else None) if isinstance(one, Probe)
        ]
        if not measured:
            raise InputError("no worker process survives its start: run with one process (--workers 1) to see why")
        self.first_spare_s = max(one.spare_s for one in measured) + serialize_s
        self._allow_for(1.0)
        if measured[0].cost:
            self.cost = StepCost(
                sum(one.cost.fixed_s for one in measured) / len(measured) + serialize_s,
                sum(one.cost.step_s for one in measured) / len(measured),
            )
            if recorded:
                self._follow()
            else:
                self._plan(measured[0].wanted, {"wanted": measured[0].wanted})

    def _closing(self) -> float:
        """Seconds to serialize a checkpoint; on the way, those that the closing and the check of the archive take."""
        state, seconds = self.maker.model.state_dict(), []
        for _ in range(3):
            start = time.perf_counter()
            serialize(state, self.maker.dtype)
            serialize_s = time.perf_counter() - start
            state_hash(state)
            seconds.append((time.perf_counter() - start, serialize_s))
        once, serialize_s = sorted(seconds)[1]
        self.least_s, self.check_s = min(3.0, max(0.6, 0.02 * self.budget.limit_s)), once * self.n_checkpoints
        return serialize_s

    def _allow_for(self, slower: float) -> None:
        """What a machine so many times slower than at first takes for the faster recipe and for the end of the run."""
        self.spare_s = slower * self.first_spare_s
        spare_s = self.first_spare_s if self.first_spare_s < math.inf else 0.0
        self.budget.reserve_s = self.least_s + (2 + slower) * (self.check_s + spare_s)

    def next_task(self) -> Task | None:
        """The next checkpoint to begin; None where there is none left."""
        if not self.todo:
            return None
        index = self.todo[0]
        lost = self.losses[index] >= _LOSSES
        task = Task(
            index,
            plan=None if self.steps is None else Plan(self.steps, fill=self.fill),
            spare=Plan(self.spare_steps) if self.limited else None,
            proven=self.n_made > 0,
            why=self.why or ("its worker died or hung each time" if lost else ""),
        )
        if self.limited:
            task = self._timed(task)
        self.given[self.todo.popleft()] = task
        self.begun[index] = self.budget.elapsed_s()
        return task

    def _timed(self, task: Task) -> Task:
        left_s = self.budget.remaining_s()
        if left_s + self.budget.reserve_s / 2 < 0:
            raise InputError(
                f"{self.maker.method.name}: the limit of {format_duration(self.budget.limit_s)} is used up with "
                f"{self.n_made} of {self.n_checkpoints} checkpoints made, which are kept: the same command continues"
            )
        if self.spare_s == math.inf:
            return task
        later = math.ceil((len(self.todo) - 1) / self.crew.n_parallel)
        if not (task.why or self.why) and (why := self._too_late(left_s, later)):
            self._fall_back(why)
        if why := task.why or self.why:
            if self.spare_steps * self.spare_s * (later + 1) > left_s:
                self._fall_back(why)
            task = replace(task, why=why)
        return replace(task, allowed_s=self._allowed_s(left_s, later), spare=Plan(self.spare_steps))

    def _too_late(self, left_s: float, later: int) -> str:
        """Why the method must not make this checkpoint and the `later` ones after it; empty where it may."""
        if self.cost and later and not self.maker.method.anytime:
            steps = max(1, min(len(self.maker.loaders.retain), int(self._pace_s() / max(1e-9, 4 * self.spare_s))))
            if self._pace_s() + 1.1 * later * steps * self.spare_s > left_s:
                return "the machine became slower"
        least_s = self._pace_s() if self.cost else 0.0
        return "no time is left for the method" if self._allowed_s(left_s, later) <= least_s else ""

    def _allowed_s(self, left_s: float, later: int) -> float:
        """Seconds after which a checkpoint is interrupted. They leave the faster recipe time for the `later` ones even
        on a machine as slow as they show; a short standstill means nothing where there is time for it."""
        if self.cost is None:
            return min(left_s - 1.5 * self.spare_s * later, math.inf if self.n_made else 10 * left_s / (later + 1))
        pace_s, reserve_s = max(1e-9, self._pace_s()), self.budget.reserve_s
        rest_s = later * min(1.3 * self.spare_s, 0.7 * pace_s) + reserve_s / 2
        standstill_s = min(0.05 * left_s, left_s - 2 * later * self.spare_s)
        return min(max((left_s + reserve_s) / (1 + rest_s / pace_s), standstill_s), max(_LONGEST_S, 10 * pace_s))

    def _slow(self) -> float:
        """The slowness to reckon with: the mean since it last changed, of no more checkpoints than are left."""
        n_left = len(self.todo)
        recent = self.slowness[-max(_RECENT, n_left) :] or [self.planned_for]
        slow = statistics.fmean(recent)
        if n_left <= 2 * self.crew.n_parallel:  # little time is left to make good for a mistake
            slow = max(slow, recent[-1])
        return slow

    def _note(self, slow: float) -> None:
        """Add a checkpoint's slowness; where the machine's speed has changed, forget what was before."""
        self.slowness.append(slow)
        latest = statistics.median(self.slowness[-_RECENT:])
        if len(self.slowness) > _RECENT and abs(latest / self._slow() - 1) > max(0.1, self._spread()):
            self.slowness, self.n_known = self.slowness[1 - _RECENT :], 0

    def _pace_s(self) -> float:
        """Seconds that a checkpoint takes at present."""
        return self.cost.seconds(self.steps or 0) * self._slow()

    def _spread(self) -> float:
        """Twice the standard deviation of a checkpoint's time as a share of it, by the differences of one to the next:
        a machine that changed its speed once is a steady one otherwise."""
        recent = self.slowness[-3 * _RECENT :]
        steps = [abs(later / max(1e-9, earlier) - 1) for earlier, later in pairwise(recent)]
        return max(0.08, 2 * statistics.median(steps)) if len(steps) >= _RECENT else 0.08

    def _rounds(self) -> tuple[int, float]:
        """How many checkpoints are begun one after the other from now on, and the seconds left for them, those that
        the processes at work still need for theirs taken off."""
        n_todo, n_parallel, left_s = len(self.todo), self.crew.n_parallel, self.budget.remaining_s()
        rounds = math.ceil(n_todo / n_parallel)
        if not (self.given and self.cost and n_todo and left_s > 0):
            return rounds, left_s
        now, slow = self.budget.elapsed_s(), self._slow()
        busy_s = [
            max(0.0, self.cost.seconds(task.plan.limit if task.plan else 0) * slow - (now - self.begun[index]))
            for index, task in self.given.items()
        ]
        free_s = [left_s - busy for busy in busy_s] + [left_s] * (n_parallel - len(busy_s))
        lengths = (free / k for free in free_s if free > 0 for k in range(1, n_todo + 1))
        fit = (each for each in lengths if sum(int(free / each + 1e-9) for free in free_s if free > 0) >= n_todo)
        return rounds, rounds * max(fit, default=0.0)

    def lost(self, lost: Lost) -> None:
        """Put a task back that went down with its worker."""
        index = lost.task.index
        del self.given[index]
        self.losses[index] += 1
        self.ledger.append("lost", index=index, reason=lost.reason)
        if not self.n_made and self.losses.total() >= _LOSSES:
            what = "use less memory" if "memory" in lost.reason else "the reason is printed above"
            raise InputError(f"checkpoint {index}: {lost.reason}, {_LOSSES} times, and none is made: {what}")
        if self.losses[index] > 2 * _LOSSES:
            raise InputError(f"checkpoint {index}: {lost.reason} whatever makes it: {self.n_made} are kept")
        self.todo.appendleft(index)

    def after(self, made: Made) -> None:
        """Compare the time left with the time the rest will take; revise the plan, or stop with what to do."""
        task = self.given.pop(made.index)
        self.n_made += 1
        if not self.limited:
            return
        steps = task.plan.limit if task.plan else 0
        self.failures = self.failures + 1 if made.why else 0
        if made.why:  # the faster recipe tells the machine's speed; what was interrupted may only have hung
            slower = made.recipe_s / max(1e-9, self.first_spare_s * (task.spare.limit or 1))
            self._allow_for(max(1.0, slower))
            if task.why or self.cost is None:
                return
            lost_s = made.seconds - made.recipe_s if slower > 1.5 or self.failures > 1 else 0.0
            self.slowness, self.n_known = [max(slower * self.usual, lost_s / max(1e-9, self.cost.seconds(steps)))], 0
        else:
            if self.cost is None:  # a function that takes no plan, and its first checkpoint
                self.cost = StepCost(made.seconds, 0.0)
                self._refuse_or_accept()
            self._note(made.seconds / max(1e-9, self.cost.seconds(steps)))
            if self.n_made - self.n_before == _RECENT:
                self.usual = self._slow()
            self._allow_for(max(1.0, self._slow() / self.usual))
        if self.maker.method.anytime and self.todo and not self.why:
            self._follow()

    def _follow(self) -> None:
        rounds, left_s = self._rounds()
        unused = left_s - (rounds + 0.04) * self._pace_s()
        sure = self.growing and len(self.slowness) - self.n_known >= min(_RECENT, max(1, rounds // 3))
        faster, limit_s = self._slow() < 0.98 * self.planned_for, self.budget.limit_s
        more = sure and unused > 0.015 * limit_s and (faster or unused + self.budget.reserve_s > 0.045 * limit_s)
        if unused >= (-0.01 * left_s if rounds > 4 else 0) and not more:  # later ones make good for a little
            return
        what = f"the machine became {'faster' if more else 'slower'}"
        most = 2 * self.steps + 1 if more else self.steps  # seconds a step may not scale
        self._plan(self.steps, {"revised": what, "slower": round(self._slow() / self.planned_for, 3)}, most)

    def _plan(self, wanted: int, facts: dict[str, Any], most: float = math.inf) -> None:
        """Take as many steps as the time left holds, at most `most`; where it holds none, stop, or go on with half."""
        rounds, left_s = self._rounds()
        slow = self._slow()
        cost = StepCost(self.cost.fixed_s * slow, self.cost.step_s * slow)
        options = {"fill": self.fill, "n_parallel": self.crew.n_parallel, "spread": self._spread()}
        try:
            steps = plan_steps(cost, wanted, len(self.todo), left_s, **options)
        except InputError:
            begun = self.n_made > self.n_before
            if not begun and (self.n_made == 0 or self.spare_s * rounds > left_s):
                raise
            steps = max(1, (self.steps or 0) // 2)  # a cost measured in a bad moment may be wrong; the alarm is not
        self.planned_for, self.n_known = slow, len(self.slowness)
        steps = min(steps, most)
        if steps != self.steps:
            self.steps = steps
            cost_facts = {"fixed_s": cost.fixed_s, "step_s": cost.step_s}
            self.ledger.append("plan", steps=steps, **cost_facts, at_s=round(self.budget.elapsed_s(), 3), **facts)

    def _fall_back(self, why: str) -> None:
        """From here on the faster recipe, with as many of its steps as fit."""
        rounds, left_s = self._rounds()
        fit = int(left_s / (1.15 * max(1, rounds) * self.spare_s)) if self.spare_s < math.inf else 1
        self.why, self.spare_steps = why, max(1, min(len(self.maker.loaders.retain), fit))
        at_s = round(self.budget.elapsed_s(), 3)
        self.ledger.append("faster_recipe", recipe="short_fine_tuning", steps=self.spare_steps, why=why, at_s=at_s)

    def _refuse_or_accept(self) -> None:
        """A function that cannot be told to hurry fits the limit or does not."""
        rounds, left_s = self._rounds()
        pace_s, n_all, name = self.cost.fixed_s, self.n_checkpoints, self.maker.method.name
        if pace_s * rounds <= left_s:
            return
        n_fit = self.n_made + len(self.given) + self.crew.n_parallel * int(max(0.0, left_s) / pace_s)
        whole_s = pace_s * math.ceil(n_all / self.crew.n_parallel)
        share = 0.97 * max(0.0, self.budget.limit_s - self.budget.reserve_s) / whole_s  # another method begins anew
        epochs = self.maker.method.settings.get("epochs")
        advice = f"do less in each, for instance {share:.0%} of its epochs"
        if isinstance(epochs, int | float) and epochs * share >= (1 if isinstance(epochs, int) else 1e-3):
            fewer = int(epochs * share) if isinstance(epochs, int) else float(f"{epochs * share:.2g}")
            advice = f"lower epochs to {fewer}"
        raise InputError(
            f"{name}: fits {min(n_fit, n_all - 1)} of {n_all} checkpoints in {format_duration(self.budget.limit_s)} "
            f"({format_duration(pace_s)} each): {advice}; {self.n_made} are kept"
        )
