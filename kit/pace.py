"""Which checkpoint is made next, with how many steps, and by what once time or the method fails."""

import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from kit.budget import Plan, StepCost, TimeBudget, format_duration, plan_steps
from kit.checkpoint import Made
from kit.errors import InputError
from kit.ledger import Ledger
from kit.making import Crew, Lost, Maker, Probe, Task
from kit.submission import serialize, state_hash

_RECENT = 3  # checkpoints that tell the machine's present speed
_LOSSES = 3  # of one checkpoint by workers that died


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
        self.losses: Counter[int] = Counter()
        self.n_made = self.n_before = n_checkpoints - len(self.todo)
        self.limited = budget.limit_s != math.inf
        self.steps: int | None = None
        self.growing = fill  # a plan of this run may take more steps; one that is continued stays what it was
        self.cost: StepCost | None = None
        self.slowness: list[float] = []  # of recent checkpoints: seconds as a multiple of the cost
        self.normal: tuple[float, float, float] | None = None  # seconds of a step, of the faster recipe, of the closing
        self.spare_s, self.spare_steps, self.why = math.inf, 1, ""

    def prepare(self) -> None:
        """Take the ledger's plan up, or make one from measured speed. Without a limit none is needed."""
        if recorded := list(self.ledger.of("plan")):
            self.steps, self.growing = recorded[-1]["steps"], False
        if not (self.limited and self.todo):
            return
        serialize_s, closing_s = self._closing()
        probes = deque(Task(-1, probe=True) for _ in range(self.crew.n_parallel))
        measured = [
            one for one in self.crew.run(lambda: probes.popleft() if probes else None) if isinstance(one, Probe)
        ]
        if not measured:
            raise InputError("no worker process survives its start: run with one process (--workers 1) to see why")
        self.spare_s = max(one.spare_s for one in measured) + serialize_s
        self.budget.reserve_s = closing_s + (3 * self.spare_s if self.spare_s < math.inf else 0)
        if measured[0].cost:
            self.cost = StepCost(
                sum(one.cost.fixed_s for one in measured) / len(measured) + serialize_s,
                sum(one.cost.step_s for one in measured) / len(measured),
            )
            if recorded:
                self._follow()
            else:
                self._plan(self.cost, measured[0].wanted, {"wanted": measured[0].wanted})

    def _closing(self) -> tuple[float, float]:
        """Seconds to serialize a checkpoint; and to close and verify the archive, half as much again as one tells."""
        state, seconds = self.maker.model.state_dict(), []
        for _ in range(3):
            start = time.perf_counter()
            serialize(state, self.maker.dtype)
            serialize_s = time.perf_counter() - start
            state_hash(state)
            seconds.append((time.perf_counter() - start, serialize_s))
        once, serialize_s = sorted(seconds)[1]
        return serialize_s, min(3.0, max(0.6, 0.02 * self.budget.limit_s)) + 3 * once * self.n_checkpoints

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
        spare_s = min(1.5 * self.spare_s, 0.5 * self._pace_s() if self.cost else math.inf)
        allowed_s = left_s - spare_s * later  # leaves one step of the faster recipe to each of the others
        if not task.why and not self.maker.method.anytime and self.cost is not None:
            steps = max(1, min(len(self.maker.loaders.retain), int(self._pace_s() / (4 * self.spare_s))))
            if self._pace_s() + 1.1 * later * steps * self.spare_s > left_s and later:
                self._fall_back("the machine became slower")
        if not task.why and (self.why or allowed_s <= 0):
            if not self.why:
                self._fall_back("no time is left for the method")
            task = replace(task, why=self.why)
        if task.why and self.spare_steps * self.spare_s * (later + 1) > left_s:
            self._fall_back(task.why)
        if not task.proven and not self.maker.method.anytime:
            allowed_s = min(allowed_s, 10 * left_s / (later + 1))
        return replace(task, allowed_s=allowed_s, spare=Plan(self.spare_steps))

    def _pace_s(self) -> float:
        """Seconds that a checkpoint takes at present."""
        recent = self.slowness[-_RECENT:] or [1.0]
        slow = statistics.median(recent)
        if len(self.todo) <= 2 * self.crew.n_parallel:  # little time is left to make good for a mistake
            slow = max(slow, recent[-1])
        return self.cost.seconds(self.steps or 0) * slow

    def _spread(self) -> float:
        """Twice the standard deviation of a checkpoint's time as a share of it."""
        recent = self.slowness[-3 * _RECENT :]
        return max(0.08, 2 * statistics.stdev(recent)) if len(recent) >= _RECENT else 0.08

    def _rounds(self) -> tuple[int, float]:
        """How many checkpoints are begun one after the other from now on, and the seconds left for them."""
        busy_s = 0.5 * self._pace_s() if self.given and self.cost else 0.0  # others are half done
        return math.ceil(len(self.todo) / self.crew.n_parallel), self.budget.remaining_s() - busy_s

    def lost(self, lost: Lost) -> None:
        """Put a task back that went down with its worker."""
        index = lost.task.index
        del self.given[index]
        self.losses[index] += 1
        self.ledger.append("lost", index=index, reason=lost.reason)
        if not self.n_made and self.losses.total() >= _LOSSES:
            raise InputError(f"checkpoint {index}: {lost.reason}, {_LOSSES} times, and none is made: use less memory")
        if self.losses[index] > 2 * _LOSSES:
            raise InputError(f"checkpoint {index}: {lost.reason} whatever makes it: {self.n_made} are kept")
        self.todo.appendleft(index)

    def after(self, made: Made) -> None:
        """Compare the time left with the time the rest will take; revise the plan, or stop with what to do."""
        task = self.given.pop(made.index)
        self.n_made += 1
        if task.why or not self.limited:
            return
        if made.why and not self.maker.method.anytime:
            return
        if self.cost is None:  # a function that takes no plan, and its first checkpoint
            self.cost = StepCost(made.seconds, 0.0)
            self._refuse_or_accept()
        slow = made.seconds / max(1e-9, self.cost.seconds(task.plan.limit if task.plan else 0))
        self.slowness = [slow] if made.why else [*self.slowness, slow]
        self._scale_reserve()
        if self.maker.method.anytime and self.todo and not self.why:
            self._follow()

    def _scale_reserve(self) -> None:
        """On a machine that became slower, the faster recipe and the closing of the archive are slower, too."""
        if len(self.slowness) == _RECENT and self.normal is None:
            self.normal = self.cost.seconds(1) * statistics.median(self.slowness), self.spare_s, self.budget.reserve_s
        if self.normal:
            before, spare_s, reserve_s = self.normal
            slower = min(4.0, max(1.0, self.cost.seconds(1) * statistics.median(self.slowness[-_RECENT:]) / before))
            self.spare_s, self.budget.reserve_s = spare_s * slower, reserve_s + (slower - 1) * 2 * spare_s

    def _follow(self) -> None:
        rounds, left_s = self._rounds()
        unused = left_s - (rounds + 0.04) * self._pace_s()
        faster = self.growing and len(self.slowness) >= _RECENT and statistics.median(self.slowness[-_RECENT:]) < 0.98
        faster = self.growing and unused > (0.015 if faster else 0.04) * self.budget.limit_s
        if unused >= (-0.01 * left_s if rounds > 4 else 0) and not faster:  # later ones make good for a little
            return
        slower = self._pace_s() / max(1e-9, self.cost.seconds(self.steps))
        cost = StepCost(self.cost.fixed_s * slower, self.cost.step_s * slower)
        what = f"the machine became {'faster' if faster else 'slower'}"
        self._plan(cost, self.steps, {"revised": what, "slower": round(slower, 3)})

    def _plan(self, cost: StepCost, wanted: int, facts: dict[str, Any]) -> None:
        """Take as many steps as the time left holds; where it holds none, stop, or go on with the faster recipe."""
        rounds, left_s = self._rounds()
        try:
            n_parallel, spread = self.crew.n_parallel, self._spread()
            steps = plan_steps(
                cost, wanted, len(self.todo), left_s, fill=self.fill, n_parallel=n_parallel, spread=spread
            )
        except InputError:
            begun = self.n_made > self.n_before
            if not begun and (self.n_made == 0 or self.spare_s * rounds > left_s):
                raise
            steps = max(1, (self.steps or 0) // 2)  # a cost measured in a bad moment may be wrong; the alarm is not
        if self.cost and (before := self.cost.seconds(self.steps or 0)) and (now := cost.seconds(self.steps or 0)):
            self.slowness = [slow * before / now for slow in self.slowness]
        self.cost = cost
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
