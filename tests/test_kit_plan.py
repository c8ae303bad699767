"""Checkpoints under a limit: the cost that is measured, the plan made from it, and a machine that changes its speed."""

import copy
import heapq
import random

import pytest
import torch

from kit.budget import TimeBudget
from kit.competition import ExampleDataset, TensorLoader, make_loaders
from kit.errors import InputError
from kit.ledger import Ledger
from kit.methods import get_method, method_names, method_of
from kit.plan import Plan, measure_cost
from kit.schedule import Run, Scheduler
from kit.tools.cli import process_age_s
from tests.conftest import dataset
from tests.test_kit_emit import ledger_of, members, run


class SlowMethod:
    """An anytime method on a clock of its own: `fixed` seconds and `step` seconds for each step."""

    def __init__(self, clock, fixed=1.0, step=0.5):
        self.clock, self.fixed, self.step, self.taken = clock, fixed, step, []

    def __call__(self, net, retain, forget, validation, *, seed, plan=None):
        steps = plan.steps(10) if plan else 10
        self.taken.append(steps)
        self.clock[0] += self.fixed + steps * self.step
        net.fc.bias.data.fill_(torch.randn(()).item())


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def planned(clock, model, loaders, out, limit, n=8, fill=False, slow=None):
    slow = slow or SlowMethod(clock)
    budget = TimeBudget(limit, clock=lambda: clock[0])
    run(model, loaders, out, n=n, method=method_of(slow.__call__, "slow"), budget=budget, fill=fill)
    return slow, budget


def test_the_cost_of_a_checkpoint_is_measured_as_a_fixed_part_and_a_part_per_step(clock, model, loaders):
    cost, wanted = measure_cost(method_of(SlowMethod(clock).__call__, "slow"), model, loaders, seed=0)
    assert (cost.fixed_s, cost.step_s, wanted) == (pytest.approx(1.0), pytest.approx(0.5), 10)


def test_time_to_measure_is_used_for_more_steps(clock, model, loaders):
    def method(fixed=0.0):
        slow = SlowMethod(clock)

        def unlearn(net, retain, forget, validation, *, seed, plan=None):
            clock[0] += fixed if len(slow.taken) == 2 else 0.0  # disturbs the second of the short runs
            slow(net, retain, forget, validation, seed=seed, plan=plan)

        return method_of(unlearn), slow

    measured, slow = method()
    measure_cost(measured, model, loaders, seed=0, fill=True, within_s=20.0)
    assert slow.taken == [1, 2, 6, 38], "1 s and 38 steps of 0.5 s"
    measured, slow = method()
    measure_cost(measured, model, loaders, seed=0, within_s=20.0)
    assert slow.taken == [1, 2, 6], "a quarter of the ten wanted steps is no more than was measured"
    disturbed, _ = method(1.0)
    cost, _ = measure_cost(disturbed, model, loaders, seed=0, fill=True, within_s=60.0)
    assert cost.step_s == pytest.approx(0.5, rel=0.01)


def test_a_disturbed_measurement_never_makes_steps_free(clock, model, loaders):
    slow, calls = SlowMethod(clock), []

    def disturbed(net, retain, forget, validation, *, seed, plan=None):
        calls.append(None)
        clock[0] += 20.0 if len(calls) == 2 else 0.0
        slow(net, retain, forget, validation, seed=seed, plan=plan)

    cost, _ = measure_cost(method_of(disturbed), model, loaders, seed=0, fill=True)
    assert cost.step_s == pytest.approx((1.0 + 6 * 0.5) / 6)


# Batches of a step, at most, where it is not one.
PER_STEP = {"bad_teacher": 2, "neggrad_plus": 2, "fanchuan": 2, "ssse": 1.5, "influence": 1.5}
ONCE = {"calibrated_restart": 3, "pseudo_label": 10, "random_labels": 10, "salun": 10, "fisher_forgetting": 1}
ONCE |= {"ssse": 2, "influence": 3}  # batches that a method reads or sends through beside its steps


@pytest.mark.filterwarnings("ignore:ssd")
@pytest.mark.parametrize("name", [name for name in method_names() if get_method(name).anytime])
def test_a_method_takes_the_steps_it_is_granted_and_costs_what_was_measured(name, clock, model, monkeypatch):
    """The clock counts batches: those read, or those sent through the net where these are the planned steps."""
    parts = [dataset(n, seed) for n, seed in ((1600, 1), (80, 2), (24, 3))]
    loaders, read = make_loaders(*parts, batch_size=8, loader=TensorLoader), []
    method = get_method(name, ["size=1"] if name == "ssse" else [])
    if name in ("ssse", "influence"):
        model.fc.register_forward_hook(lambda module, args, output: read.append(len(output) / 8))
    else:
        batch = ExampleDataset.batch
        monkeypatch.setattr(ExampleDataset, "batch", lambda data, index: read.append(1) or batch(data, index))
    monkeypatch.setattr("time.perf_counter", lambda: float(sum(read)))
    cost, wanted = measure_cost(method, model, loaders, seed=0)
    slack = 2 + ONCE.get(name, 0) / 2  # forget batches of other labels are read once and then come at random
    for n_steps in (2, 6, 40):
        read.clear()
        method(copy.deepcopy(model), loaders, seed=0, plan=Plan(n_steps))
        assert sum(read) <= PER_STEP.get(name, 1) * n_steps + ONCE.get(name, 0)
        assert 0.9 * sum(read) - slack <= cost.seconds(min(n_steps, wanted)) <= 1.2 * sum(read) + slack


def test_wanted_steps_are_taken_when_they_fit(clock, model, loaders, tmp_path):
    slow, budget = planned(clock, model, loaders, tmp_path, "100s")
    assert slow.taken[3:] == [10] * 8
    assert budget.elapsed_s() < 100


def test_fewer_steps_are_planned_when_they_do_not_fit(clock, model, loaders, tmp_path):
    slow, budget = planned(clock, model, loaders, tmp_path, "40s")
    assert len(set(slow.taken[3:])) == 1, "all checkpoints must be one distribution"
    assert 0 < slow.taken[-1] < 10
    assert budget.elapsed_s() <= 40


def test_fill_uses_the_limit(clock, model, loaders, tmp_path):
    slow, budget = planned(clock, model, loaders, tmp_path, "200s", fill=True)
    assert slow.taken[-1] > 10
    assert 0.85 * 200 < budget.elapsed_s() <= 200


def test_a_machine_that_slows_down_gets_a_shorter_plan_and_the_ledger_says_so(clock, model, loaders, tmp_path):
    slow = SlowMethod(clock)

    def slower(net, retain, forget, validation, *, seed, plan=None):
        if len(slow.taken) == 3 + 3:  # after the three measuring runs and three checkpoints
            slow.fixed, slow.step = slow.fixed * 1.5, slow.step * 1.5
        slow(net, retain, forget, validation, seed=seed, plan=plan)

    budget = TimeBudget("60s", clock=lambda: clock[0])
    run(model, loaders, tmp_path, n=8, method=method_of(slower), budget=budget)
    plans = [line for line in ledger_of(tmp_path) if line["event"] == "plan"]
    assert len(plans) >= 2
    assert plans[-1]["steps"] < plans[0]["steps"]
    assert plans[-1]["lowered"] == "the machine became slower"
    assert budget.elapsed_s() <= 60


def test_a_limit_that_cannot_hold_one_checkpoint_is_told(clock, model, loaders, tmp_path):
    with pytest.raises(InputError, match="the time limit fits 0 of 8 checkpoints"):
        planned(clock, model, loaders, tmp_path, "5s")


def test_a_function_without_a_plan_is_projected_after_its_first_checkpoint(clock, model, loaders, tmp_path):
    def unlearning(net, retain, forget, validation):
        clock[0] += 10
        net.fc.bias.data.fill_(torch.randn(()).item())

    budget = TimeBudget("40s", clock=lambda: clock[0])
    with pytest.raises(
        InputError, match=r"unlearning: fits 3 of 8 checkpoints in 40.0 s .* 48% of its epochs; 1 are kept"
    ):
        run(model, loaders, tmp_path, n=8, method=method_of(unlearning), budget=budget)
    assert clock[0] == 10


def speeding(clock, speeds):
    """A SlowMethod whose speed changes: {number of calls: factor of its times}."""
    slow = SlowMethod(clock)

    def method(net, retain, forget, validation, *, seed, plan=None):
        if factor := speeds.get(len(slow.taken)):
            slow.fixed, slow.step = slow.fixed * factor, slow.step * factor
        slow(net, retain, forget, validation, seed=seed, plan=plan)

    return method_of(method), slow


@pytest.mark.parametrize("fill", [False, True])
def test_a_faster_machine_changes_no_plan(clock, model, loaders, tmp_path, fill):
    method, slow = speeding(clock, {(4 if fill else 3) + 4: 0.5})
    run(model, loaders, tmp_path, n=16, method=method, budget=TimeBudget("60s", clock=lambda: clock[0]), fill=fill)
    assert len({line["steps"] for line in ledger_of(tmp_path) if line["event"] == "plan"}) == 1
    assert len(set(slow.taken[-16:])) == 1


def test_fill_on_a_steady_machine_keeps_one_plan_and_uses_the_limit(clock, model, loaders, tmp_path):
    slow, budget = planned(clock, model, loaders, tmp_path, "400s", n=16, fill=True)
    assert len(set(slow.taken[-16:])) == 1, "all checkpoints must be one distribution"
    assert 0.93 * 400 < budget.elapsed_s() <= 400


@pytest.mark.parametrize("change", [1.0, 2.0, 0.5])
def test_noise_is_no_reason_to_change_the_plan(clock, model, loaders, tmp_path, change):
    """Checkpoints that differ by 5% in time; after two fifths of them the machine's speed changes, or does not."""
    slow, noise, n = SlowMethod(clock), random.Random(0), 60

    def method(net, retain, forget, validation, *, seed, plan=None):
        before = clock[0]
        slow(net, retain, forget, validation, seed=seed, plan=plan)
        factor = change if len(slow.taken) > 4 + 0.4 * n else 1.0
        clock[0] = before + (clock[0] - before) * factor * noise.gauss(1, 0.05)

    budget = TimeBudget("3000s", clock=lambda: clock[0])
    run(model, loaders, tmp_path, n=n, method=method_of(method), budget=budget, fill=True)
    assert budget.elapsed_s() <= 3000
    plans = [line["steps"] for line in ledger_of(tmp_path) if line["event"] == "plan"]
    assert plans == sorted(plans, reverse=True), "a plan is never raised"
    assert len(plans) == 1 if change <= 1 else 2 <= len(plans) <= 6


@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_continued_run_keeps_its_plan_whatever_time_it_is_given(clock, model, loaders, tmp_path, after):
    whole, _ = planned(clock, model, loaders, tmp_path / "whole", "200s", fill=True)
    slow, taken = SlowMethod(clock), []

    def interrupted(net, retain, forget, validation, *, seed, plan=None):
        if len(slow.taken) == 3 + after and not taken:
            taken.append(None)
            raise KeyboardInterrupt
        slow(net, retain, forget, validation, seed=seed, plan=plan)

    method = method_of(interrupted, "slow")
    for _ in range(2):
        budget = TimeBudget("200s", clock=lambda: clock[0])
        try:
            run(model, loaders, tmp_path / "parts", n=8, method=method, budget=budget, fill=True)
        except KeyboardInterrupt:
            continue
    steps = {line["steps"] for line in ledger_of(tmp_path / "parts") if line["event"] == "plan"}
    assert steps == {whole.taken[-1]}
    assert members(tmp_path / "parts/submission.zip") == members(tmp_path / "whole/submission.zip")


@pytest.mark.parametrize("n_parallel", [1, 2, 5])
def test_the_time_that_is_needed_is_that_of_processes_which_begin_the_next_when_they_are_free(
    clock, tmp_path, n_parallel
):
    run = Run(method_of(SlowMethod(clock).__call__, "slow"), Ledger(tmp_path / "l"), TimeBudget(), 30, n_parallel)
    numbers = random.Random(0)
    for _ in range(200):
        schedule, each_s = Scheduler(run, range(numbers.randint(0, 30))), 10 * numbers.random()
        free = [0.0] * n_parallel
        for process in range(numbers.randint(0, n_parallel)):
            free[process] = each_s * numbers.random()
            schedule.given[30 + process] = clock[0] - (each_s - free[process])
        heapq.heapify(free)
        for _ in schedule.todo:
            heapq.heapreplace(free, free[0] + each_s)
        assert schedule._needed_s(each_s) == pytest.approx(max(free))


def test_a_limit_that_is_used_up_stops_with_what_is_kept(clock, model, loaders, tmp_path):
    method, _ = speeding(clock, {3 + 4: 1000.0})
    with pytest.raises(InputError, match=r"(fits|used up)"):
        run(model, loaders, tmp_path, n=8, method=method, budget=TimeBudget("60s", clock=lambda: clock[0]))
    assert not (tmp_path / "submission.zip").exists()
    assert len([line for line in ledger_of(tmp_path) if line["event"] == "checkpoint"]) >= 4


def test_time_before_the_start_counts(clock):
    budget = TimeBudget("60s", spent_s=20.0, clock=lambda: clock[0])
    clock[0] += 10
    assert (budget.elapsed_s(), budget.remaining_s()) == (30.0, 30.0)
    assert 0 < process_age_s() < 24 * 3600
