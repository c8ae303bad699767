import math
import signal
import time

import pytest

from kit.budget import OverrunError, TimeBudget, alarm, format_duration, parse_duration
from kit.errors import InputError
from kit.plan import Plan, StepCost, plan_steps, planned_steps


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("8h", 28800),
        ("90m", 5400),
        ("120s", 120),
        ("1h30m", 5400),
        ("2.5 min", 150),
        ("45", 45),
        (7, 7),
        (" 1H ", 3600),
    ],
)
def test_durations_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-3m", "8x", "h", "8h tomorrow", "nan", "inf", "1..2s", "5 5"])
def test_other_texts_are_refused_in_one_line(text):
    with pytest.raises(InputError, match="expected a positive time such as 8h") as caught:
        parse_duration(text)
    assert "\n" not in str(caught.value)


def test_durations_are_written_in_the_unit_that_fits():
    seconds = (0.0123, 0.9996, 12.34, 99.97, 119.7, 250, 5999.9, 28700)
    texts = ["12 ms", "1.0 s", "12.3 s", "1 min 40 s", "2 min 0 s", "4 min 10 s", "1 h 40 min", "7 h 58 min"]
    assert [format_duration(s) for s in seconds] == texts


def test_the_budget_counts_on_its_own_clock():
    now = [100.0]
    budget = TimeBudget("60s", clock=lambda: now[0])
    now[0] += 20
    assert budget.elapsed_s() == 20
    assert budget.remaining_s() == 40
    now[0] += 100
    assert budget.remaining_s() < 0


def test_a_budget_without_limit_never_ends():
    assert TimeBudget().remaining_s() == math.inf


@pytest.mark.parametrize(
    ("plan", "wanted", "granted"),
    [
        (None, 7.2, 8),
        (Plan(), 7, 7),
        (Plan(3), 7, 3),
        (Plan(30), 7, 7),
        (Plan(30, fill=True), 7, 30),
        (Plan(0), 7, 0),
    ],
)
def test_a_plan_grants_steps(plan, wanted, granted):
    assert planned_steps(plan, wanted) == granted


def test_a_plan_remembers_what_was_wanted():
    plan = Plan(3)
    plan.steps(6.5)
    assert plan.wanted == 7


COST = StepCost(fixed_s=1.0, step_s=0.5)


def test_wanted_steps_are_planned_when_they_fit():
    assert plan_steps(COST, wanted=10, n_checkpoints=4, left_s=100) == 10


def test_fewer_are_planned_when_they_do_not_and_the_whole_stays_inside():
    steps = plan_steps(COST, wanted=1000, n_checkpoints=4, left_s=100)
    assert 0 < steps < 1000
    assert 0.9 * 100 < 1.05 * 4 * COST.seconds(steps) <= 100


def test_fill_takes_the_time_there_is():
    steps = plan_steps(COST, 10, 4, 100, fill=True)
    assert 10 < plan_steps(COST, 1000, 4, 100) <= steps
    assert 0.9 * 100 < 1.05 * 4 * COST.seconds(steps) <= 100
    assert plan_steps(COST, 0, 4, 100, fill=True) == 0, "a method without steps has none to add"


def test_a_limit_that_cannot_hold_the_checkpoints_says_how_many_fit():
    with pytest.raises(InputError, match=r"fits 3 of 4 checkpoints .* raise the limit or make fewer"):
        plan_steps(COST, 10, 4, 5.0)
    with pytest.raises(InputError, match="fits 0 of 4"):
        plan_steps(COST, 10, 4, -2.0)


def test_a_time_that_no_timer_takes_needs_no_alarm():
    with alarm(parse_duration("10000000h") / 2):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_alarm_interrupts_a_function_that_catches_exceptions():
    start, before = time.monotonic(), signal.getsignal(signal.SIGALRM)
    with pytest.raises(OverrunError), alarm(0.1):
        while time.monotonic() < start + 60:
            try:
                time.sleep(0.01)
            except Exception:
                continue
    assert time.monotonic() < start + 30
    with alarm(60):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0), "nothing rings any more"
    assert signal.getsignal(signal.SIGALRM) is before


def test_the_alarm_rings_again():
    """A bare except swallows the first ring, in the middle of a loop; not the second."""
    start, swallowed = time.monotonic(), []
    with pytest.raises(OverrunError), alarm(0.1):
        try:
            time.sleep(60)
        except:  # noqa: E722 - what participants write
            swallowed.append(True)
        time.sleep(60)
    assert swallowed
    assert 1.0 < time.monotonic() - start < 50
