"""Checkpoints made by several processes, some of which die, hang or fail. What they call is called by name."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kit import jobs
from kit.budget import TimeBudget
from kit.checkpoint import Maker, Outcome, Probe, ProbeJob
from kit.competition import TensorLoader, make_loaders
from kit.errors import InputError
from kit.jobs import Job, Lost, run_jobs
from kit.ledger import Ledger
from kit.methods import method_of
from kit.plan import StepCost
from kit.schedule import Run, Scheduler
from local_eval.engines import run_all
from local_eval.models import tinyconv
from tests.conftest import dataset
from tests.test_kit_emit import FINETUNE, ledger_of, run

ROOT = Path(__file__).parents[1]


def problem(device):
    torch.manual_seed(0)
    loaders = make_loaders(dataset(50, 1), dataset(20, 2), dataset(20, 3), batch_size=8, loader=TensorLoader)
    return tinyconv().eval(), loaders


def once(folder, index):
    """True the first time it is asked for an index, in whichever process."""
    try:
        (Path(folder) / f"{index}").touch(exist_ok=False)
        return True
    except FileExistsError:
        return False


@dataclass(frozen=True)
class Unreliable:
    """A method's function that dies or hangs at some checkpoints, once or always."""

    folder: Path
    dies: tuple = ()
    hangs: tuple = ()
    always: bool = False

    def __call__(self, job: Any) -> None:
        if isinstance(job, ProbeJob) or job.stands_in_for or not (self.always or once(self.folder, job.number)):
            return
        if job.number in self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        if job.number in self.hangs:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # as code that never returns to Python
            time.sleep(600)


def problem_with(fault, device):
    """In a process of its own: every maker meets `fault` before a job."""
    plain = Maker.__call__

    def call(self, job):
        fault(job)
        return plain(self, job)

    Maker.__call__ = call
    return problem(device)


@pytest.fixture
def little_patience(monkeypatch):
    monkeypatch.setattr(jobs, "PATIENCE_S", 6.0)


def in_processes(model, loaders, out, fault, n=6, **options):
    fault.folder.mkdir()
    options = {"devices": ["cpu"] * 2, "problem": partial(problem_with, fault), **options}
    return run(model, loaders, out, n=n, **options)


@pytest.mark.usefixtures("little_patience")
@pytest.mark.parametrize("n_processes", [2, 3])
def test_several_processes_write_the_bytes_of_one_though_one_dies_and_one_hangs(model, loaders, tmp_path, n_processes):
    whole = run(model, loaders, tmp_path / "whole", n=6).archive.read_bytes()
    fault = Unreliable(tmp_path / "marks", dies=(1,), hangs=(4,))
    result = in_processes(model, loaders, tmp_path / "out", fault, devices=["cpu"] * n_processes)
    assert result.archive.read_bytes() == whole
    lost = [line for line in ledger_of(tmp_path / "out") if line["event"] == "lost"]
    assert {line["index"] for line in lost} == {1, 4}
    assert any("SIGKILL" in line["reason"] for line in lost)
    assert any("hung" in line["reason"] for line in lost)
    assert len(result.reasons) == 0


def test_a_limit_holds_though_a_process_hangs_and_one_dies(model, loaders, tmp_path):
    budget = TimeBudget("40s")
    fault = Unreliable(tmp_path / "marks", dies=(1,), hangs=(3,))
    result = in_processes(model, loaders, tmp_path / "out", fault, n=8, budget=budget)
    assert budget.elapsed_s() <= 40
    assert result.faults == []


def test_a_checkpoint_that_kills_its_process_each_time_is_made_by_the_stand_in(model, loaders, tmp_path):
    fault = Unreliable(tmp_path / "marks", dies=(3,), always=True)
    result = in_processes(model, loaders, tmp_path / "out", fault, n=5)
    assert (len(result.reasons), result.reasons[0]) == (1, "its process died or hung each time")


def test_processes_that_always_die_stop_the_run(model, loaders, tmp_path):
    fault = Unreliable(tmp_path / "marks", dies=tuple(range(9)), always=True)
    with pytest.raises(InputError, match=r"SIGKILL.*3 times, and none is made"):
        in_processes(model, loaders, tmp_path / "out", fault)


def ends(device):
    os._exit(1)


def refuses(device):
    raise InputError("no data here")


def has_a_bug(device):
    return {}["a key of ours"]


@pytest.mark.parametrize(
    ("setup", "kind", "message"),
    [
        (ends, InputError, r"ended at its start \(exit code 1\), 3 times.*: the reason is printed above"),
        (refuses, InputError, "^no data here$"),
        (has_a_bug, KeyError, "a key of ours"),
    ],
)
def test_a_process_that_cannot_begin_tells_why(model, loaders, tmp_path, setup, kind, message):
    with pytest.raises(kind, match=message):
        run(model, loaders, tmp_path / "out", devices=["cpu"] * 2, problem=setup)
    with pytest.raises(kind, match=message):
        run_all(setup, range(4), ["cpu"] * 2, progress=False)


def killed(device):
    return lambda number: os.kill(os.getpid(), signal.SIGKILL)


def test_only_where_memory_may_have_run_out_fewer_processes_are_advised():
    with pytest.raises(InputError, match=r"died \(SIGKILL, as when memory .*\), 3 times: .* with fewer processes$"):
        run_all(killed, range(4), ["cpu"] * 2, progress=False)
    with pytest.raises(InputError, match=r"3 times: the reason is printed above, or your script lacks `if __name__"):
        run_all(ends, range(4), ["cpu"] * 2, progress=False)


def squares(device):
    return lambda number: number * number


def test_jobs_give_the_same_in_one_process_and_in_several():
    expected = {number: number * number for number in range(7)}
    assert [run_all(squares, range(7), ["cpu"] * n, progress=False) for n in (1, 2, 3)] == [expected] * 3
    assert run_all(squares, [], ["cpu"] * 2, progress=False) == {}


def nothing(device):
    return lambda number: None


def test_a_job_may_give_nothing():
    assert run_all(nothing, range(3), ["cpu"] * 2, progress=False) == dict.fromkeys(range(3))


PARENT = """
import sys, time
from local_eval.engines import run_all

def setup(device):
    def work(number):
        print(number, flush=True)
        time.sleep(600)
    return work

if __name__ == "__main__":
    run_all(setup, range(2), ["cpu"] * 2, progress=False)
"""


def test_processes_end_with_a_parent_that_was_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    command, environment = [sys.executable, str(tmp_path / "parent.py")], {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        for _ in range(2):
            parent.stdout.readline()  # both are at it
        parent.kill()
        assert parent.stdout.read() == "", "they hold the pipe: it ends with the last of them"


def crowded(folder, device):
    """Memory for one process of a device at a time."""

    def work(number):
        mark = Path(folder) / device.replace(":", "-")
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB") from None
        time.sleep(0.3)
        mark.unlink()
        return number

    return work


def test_a_device_without_memory_for_five_works_on_fewer_at_a_time(tmp_path):
    found = run_all(partial(crowded, tmp_path), range(5), ["cpu"] * 5, progress=False)
    assert found == {number: number for number in range(5)}


def crowded_at_once(folder, device):
    """No memory for the first two processes, which meet."""
    number = next(n for n in range(9) if once(folder, n))

    def work(job):
        while not (Path(folder) / "1").exists():
            time.sleep(0.01)
        if number < 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return job

    return work


def test_processes_that_run_out_of_memory_together_leave_one_that_does_not(tmp_path):
    assert run_all(partial(crowded_at_once, tmp_path), range(4), ["cpu"] * 2, progress=False) == {
        n: n for n in range(4)
    }


def begins_late(device):
    time.sleep(600)


def test_a_process_that_does_not_begin_is_ended():
    todo = [Job(0, begin_s=1.0)]
    (job, result), *_ = run_jobs(begins_late, lambda: todo.pop() if todo else None, ["cpu"] * 2)
    assert job.number == 0 and result.reason.startswith("its process did not begin in ")


def with_loaders_that_have_processes(net, retain, forget, validation):
    """As Kaggle notebooks do."""
    batches = list(torch.utils.data.DataLoader(retain.dataset, batch_size=8, num_workers=1))
    with torch.no_grad():
        net.fc.bias += 0.01 * len(batches) * torch.randn(10)


def test_a_methods_loaders_may_have_processes_of_their_own(model, loaders, tmp_path):
    options = {"method": method_of(with_loaders_that_have_processes), "n": 4}
    one = run(model, loaders, tmp_path / "one", **options)
    two = run(model, loaders, tmp_path / "two", devices=["cpu"] * 2, problem=problem, **options)
    assert one.archive.read_bytes() == two.archive.read_bytes()


def test_a_plan_is_lowered_once_where_fewer_processes_are_left(tmp_path):
    now, n_all, step_s = [0.0], 64, 0.02
    budget = TimeBudget("300s", clock=lambda: now[0])
    schedule = Scheduler(Run(FINETUNE, Ledger(tmp_path / "ledger"), budget, n_all, 2), range(n_all))
    for _ in range(2):
        schedule.note(schedule.next_job(), Probe([StepCost(0.1, step_s)], [10_000], 0.02, 0.001))
    begun = [schedule.next_job(), schedule.next_job()]
    schedule.note(begun[0], Lost("no memory for one more process", n_left=1))
    job = begun[1]
    while job:
        seconds = 0.1 + step_s * job.steps
        now[0] += seconds
        schedule.note(job, Outcome(seconds))
        job = schedule.next_job()
    plans = [line["steps"] for line in schedule.run.ledger.of("plan")]
    assert schedule.n_made == n_all and not schedule.by_stand_in and budget.remaining_s() > 0
    assert len(plans) <= 3 and 0.4 * plans[0] < plans[-1] < 0.55 * plans[0], plans


def test_the_plan_is_made_though_a_second_process_had_no_memory_to_measure(tmp_path):
    for order in ((0, 1), (1, 0)):
        path = tmp_path / f"ledger{order[0]}"
        schedule = Scheduler(Run(FINETUNE, Ledger(path), TimeBudget("300s"), 8, 2), range(8))
        probes = [schedule.next_job(), schedule.next_job()]
        results = [Lost("no memory", n_left=1), Probe([StepCost(0.1, 0.02)], [100], 0.02, 0.001)]
        for which in order:
            schedule.note(probes[which], results[which])
        assert schedule.steps == 100 and schedule.next_job().number == 0


def full(device):
    def work(number):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    return work


@pytest.mark.parametrize("n_processes", [1, 2])
def test_a_device_without_memory_for_one_is_told(n_processes):
    with pytest.raises(InputError, match=r"cpu: .*out of memory.*smaller batch"):
        run_all(full, range(3), ["cpu"] * n_processes, progress=False)


def test_jobs_are_asked_for_one_at_a_time():
    asked = []

    def next_job():
        asked.append(len(asked))
        return None

    assert list(run_jobs(squares, next_job, ["cpu"])) == []
    assert asked == [0]


def sleepy(net, retain, forget, validation, *, seed, plan=None):
    time.sleep(600)


def deaf(net, retain, forget, validation, *, seed, plan=None):
    """A bare except around its loop."""
    while True:
        try:  # noqa: SIM105
            time.sleep(0.05)
        except:  # noqa: E722 - what participants write
            pass


def test_a_limit_that_is_used_up_at_the_start_is_told(model, loaders, tmp_path):
    with pytest.raises(InputError, match="the limit of 500 ms holds no checkpoint: raise the limit"):
        run(model, loaders, tmp_path, budget=TimeBudget("0.5s"))


@pytest.mark.parametrize("method", [sleepy, deaf])
def test_a_method_that_hangs_in_its_first_call_is_told_and_ended_though_it_ignores_its_alarm(
    model, loaders, tmp_path, method
):
    """200 checkpoints in a minute leave ten seconds for the first steps, however long a process takes to begin."""
    options = {"n": 200, "budget": TimeBudget("60s"), "devices": ["cpu"] * 2, "problem": problem}
    with pytest.raises(InputError, match=rf"{method.__name__}: its first steps were not done after 10\.0 s"):
        run(model, loaders, tmp_path, method=method_of(method), **options)
    assert options["budget"].elapsed_s() <= 60


def test_a_method_travels_to_a_process_with_its_settings(participant):
    import pickle

    from kit.methods import get_method

    path = participant("def unlearning(net, a, b, c, strength=1.0): pass\n")
    method = get_method(path, ["strength=3"])
    again = pickle.loads(pickle.dumps(method))
    assert (again.identity, again.settings, again.name) == (method.identity, {"strength": 3.0}, "mine")
    assert pickle.loads(pickle.dumps(replace(FINETUNE, hyper={"lr": 0.1}))).settings["lr"] == 0.1
    data = pickle.dumps(method)
    participant("def unlearning(net, a, b, c, strength=1.0): net.fc.bias.data.zero_()\n")
    with pytest.raises(InputError, match="was changed while it was used"):
        pickle.loads(data)
