"""Faults injected into a run: each has its stated answer, and whatever is kept continues to the same bytes."""

import errno
import os
import shutil
import signal
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kit import checkpoint as checkpoint_module
from kit.budget import TimeBudget
from kit.checkpoint import OVERRUN
from kit.errors import InputError
from kit.ledger import Ledger
from kit.methods import get_method, method_of
from kit.preflight import checkpoint_bytes
from tests.test_kit_emit import disk, ledger_of, members, run

ROOT = Path(__file__).parents[1]


def fine(net, retain, forget, validation):
    """A function of the four arguments that works."""
    with torch.no_grad():
        net.fc.bias += torch.randn(10)


class Faulty:
    """`fine`, but for the calls whose number `faults` names: those do what it says."""

    def __init__(self, faults):
        self.faults, self.calls = faults, 0

    def __call__(self, net, retain, forget, validation):
        self.calls += 1
        fine(net, retain, forget, validation)
        if fault := self.faults.get(self.calls - 1):
            fault(net)


def fail(net):
    raise ZeroDivisionError("a batch was empty")


def out_of_memory(net):
    raise torch.cuda.OutOfMemoryError("tried to allocate 2 GiB")


def not_a_number(net):
    net.fc.weight.data[0] = float("nan")


def emitted(model, loaders, out, faults, n=5, **options):
    function = Faulty(faults)
    result = run(model, loaders, out, n=n, method=method_of(function.__call__, "faulty"), **options)
    assert result.faults == []
    return result, [line for line in ledger_of(out) if line["event"] == "checkpoint"], function


@pytest.mark.parametrize("fault", [fail, not_a_number])
def test_one_failure_is_tried_again_with_a_fresh_seed(model, loaders, tmp_path, fault):
    whole = emitted(model, loaders, tmp_path / "whole", {})[0]
    result, lines, _ = emitted(model, loaders, tmp_path / "faulty", {2: fault})
    assert [line["attempt"] for line in lines] == [0, 0, 1, 0, 0]
    assert len(result.reasons) == 0
    ours, theirs = members(result.archive), members(whole.archive)
    assert [ours[name] == theirs[name] for name in ours] == [True, True, False, True, True]


def test_out_of_memory_is_tried_again_with_the_same_seed(model, loaders, tmp_path):
    whole = emitted(model, loaders, tmp_path / "whole", {})[0]
    result, lines, function = emitted(model, loaders, tmp_path / "faulty", {2: out_of_memory, 3: out_of_memory})
    assert [line["attempt"] for line in lines] == [0] * 5
    assert function.calls == 7
    assert members(result.archive) == members(whole.archive)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(fail, "a batch was empty"), (not_a_number, "NaN or infinite"), (out_of_memory, "2 GiB")],
)
def test_a_checkpoint_that_fails_three_times_is_made_by_the_stand_in(model, loaders, tmp_path, fault, reason):
    result, lines, _ = emitted(model, loaders, tmp_path, dict.fromkeys((2, 3, 4), fault))
    assert len(result.reasons) == 1
    assert [line.get("recipe") for line in lines] == [None, None, "short_fine_tuning", None, None]
    assert reason in lines[2]["why"]
    assert "1 of them by short_fine_tuning" in result.summary()


@pytest.mark.parametrize(
    ("fault", "calls", "reason"),
    [(fail, 1, "a batch was empty"), (not_a_number, 3, "lower the learning rate"), (out_of_memory, 3, "batch size")],
)
def test_a_first_checkpoint_that_fails_stops_the_run(model, loaders, tmp_path, fault, calls, reason):
    function = Faulty(dict.fromkeys(range(9), fault))
    with pytest.raises(InputError, match=reason) as stopped:
        run(model, loaders, tmp_path, method=method_of(function.__call__, "faulty"))
    assert function.calls == calls
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "submission.zip").exists()


def test_a_method_that_ends_the_program_fails_as_any_other(model, loaders, tmp_path):
    def ending(net):
        sys.exit()

    with pytest.raises(InputError, match=r"faulty: checkpoint 0 failed: SystemExit"):
        emitted(model, loaders, tmp_path / "a", {0: ending})
    result, _ = emitted(model, loaders, tmp_path / "b", dict.fromkeys((2, 3, 4), ending))[:2]
    assert "SystemExit" in result.reasons[0]
    (file := tmp_path / "ends.py").write_text("import sys\n\nsys.exit()\n")
    with pytest.raises(InputError, match=r"ends\.py, line 3: SystemExit"):
        get_method(str(file))


def test_a_method_that_fails_while_its_speed_is_measured_is_told(model, loaders, tmp_path):
    def unlearn(net, retain, forget, validation, *, seed, plan=None):
        raise ZeroDivisionError("a batch was empty")

    with pytest.raises(InputError, match="unlearn: failed at its first steps: ZeroDivisionError: a batch was empty"):
        run(model, loaders, tmp_path, method=method_of(unlearn), budget=TimeBudget("60s"))


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["checkpoint", "ledger", "archive"])
def test_a_full_disk_stops_and_what_is_written_is_kept(model, loaders, tmp_path, monkeypatch, where):
    whole = run(model, loaders, tmp_path / "whole").archive.read_bytes()
    names = {"checkpoint": ".unlearned_checkpoint_2", "ledger": "ledger.jsonl", "archive": "submission.zip.partial"}
    plain, written = Path.open, []

    def full(self, mode="r", *args, **kwargs):
        if self.name.startswith(names[where]) and mode in ("a", "wb", "w"):
            written.append(mode)
            if where != "ledger" or len(written) == 4:  # the start, two checkpoints
                full_disk()
        return plain(self, mode, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        if where == "archive":
            patch.setattr("kit.archive.zipfile", SimpleNamespace(ZipFile=full_disk, ZIP_STORED=zipfile.ZIP_STORED))
        with pytest.raises(InputError, match=r"No space left on device.*the same command continues"):
            run(model, loaders, tmp_path / "out")
    assert not (tmp_path / "out/submission.zip").exists()
    finished = list((tmp_path / "out/checkpoints").rglob("unlearned_checkpoint_*.pth"))
    assert len(finished) == (4 if where == "archive" else 2)
    assert not list((tmp_path / "out/checkpoints").rglob(".*")), "nothing half-written stays"
    assert run(model, loaders, tmp_path / "out").archive.read_bytes() == whole


def test_a_disk_that_is_really_full(model, loaders, tmp_path):
    """The system's own refusal to write on, while the archive is packed."""
    import resource

    whole = run(model, loaders, tmp_path / "whole").archive.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, limits[1]))
        with pytest.raises(InputError, match="cannot be written any more"):
            run(model, loaders, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert run(model, loaders, tmp_path / "out").archive.read_bytes() == whole


def test_an_output_folder_that_vanishes(model, loaders, tmp_path):
    out = tmp_path / "out"

    def gone(net):
        shutil.rmtree(out)

    with pytest.raises(InputError, match=r"cannot be written any more.*bring the folder back"):
        emitted(model, loaders, out, {2: gone})


def test_a_method_that_goes_to_another_folder_leaves_relative_paths_valid(model, loaders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    def unlearning(net, retain, forget, validation):
        fine(net, retain, forget, validation)
        os.chdir(tmp_path / "elsewhere")

    result = run(model, loaders, Path("out"), method=method_of(unlearning), work=Path("work"))
    assert (result.archive, result.faults) == (tmp_path / "out/submission.zip", [])
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_output_folder_that_becomes_read_only(model, loaders, tmp_path, monkeypatch):
    plain = Path.open

    def refused(self, mode="r", *args, **kwargs):
        if self.name == "ledger.jsonl" and mode == "a" and (tmp_path / "locked").exists():
            raise PermissionError(errno.EACCES, "Permission denied")  # what the system says to all but root
        return plain(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(InputError, match="Permission denied"):
        emitted(model, loaders, tmp_path / "out", {2: lambda net: (tmp_path / "locked").touch()})


def test_a_ledger_is_cut_without_needing_space(tmp_path, monkeypatch):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"event": "start"}\n{"event": "che')
    monkeypatch.setattr(Path, "write_text", full_disk)
    assert [line["event"] for line in Ledger(path).lines] == ["start"]
    assert path.read_text() == '{"event": "start"}\n'


@pytest.mark.parametrize("text", ["[1]\n", '{"event": 3}\n', "{}\n", "[" * 100_000 + "\n", "\udcff\n"])
def test_a_file_that_is_no_ledger(tmp_path, text):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match="another output folder"):
        Ledger(path)


def test_space_is_asked_for_what_is_still_to_be_written(model, loaders, tmp_path, monkeypatch):
    each = checkpoint_bytes(model, None)
    with pytest.raises(KeyboardInterrupt):
        emitted(model, loaders, tmp_path, {3: interrupt})
    disk(monkeypatch, (2 + 5) * each - 1)
    with pytest.raises(InputError, match="still to be written"):
        emitted(model, loaders, tmp_path, {})
    disk(monkeypatch, (2 + 5) * each)  # two checkpoints, and the archive of five
    emitted(model, loaders, tmp_path, {})


def interrupt(net):
    raise KeyboardInterrupt


def takes(clock, seconds):
    return lambda net: clock.passes(seconds)


@pytest.fixture
def stand_in_of_a_second(own_clock, monkeypatch):
    """A call of the stand-in takes 1 s."""
    plain = checkpoint_module.fine_tune

    def fine_tune(*args, **options):
        own_clock.passes(1)
        return plain(*args, **options)

    monkeypatch.setattr(checkpoint_module, "fine_tune", fine_tune)


@pytest.mark.usefixtures("stand_in_of_a_second")
def test_a_hanging_checkpoint_is_interrupted_and_the_rest_is_made_in_time(model, loaders, tmp_path, own_clock):
    budget = TimeBudget("100s", clock=own_clock)
    faults = {call: takes(own_clock, 600 if call == 2 else 3) for call in range(5)}
    result, lines, _ = emitted(model, loaders, tmp_path, faults, budget=budget)
    assert budget.elapsed_s() <= 100
    assert [line.get("recipe") for line in lines] == [None, None, "short_fine_tuning", None, None]
    assert lines[2]["why"] == OVERRUN
    assert len(result.reasons) == 1


@pytest.mark.parametrize("fill", [False, True])
def test_a_machine_that_is_suddenly_ten_times_slower(model, loaders, tmp_path, monkeypatch, own_clock, fill):
    """Everything is: the method, the stand-in, in the middle of a checkpoint. All are made, and in time."""
    plain, calls, made = torch.nn.Conv2d.forward, [0], []

    def forward(self, images):
        calls[0] += 1
        own_clock.passes(0.1 if len(made) > 2 and calls[0] > made[2] + 4 else 0.01)
        return plain(self, images)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)
    budget = TimeBudget("70s", clock=own_clock)
    options = {"method": get_method("finetune", ["epochs=4"]), "budget": budget, "fill": fill}
    result = run(model, loaders, tmp_path, n=24, on_checkpoint=lambda *_: made.append(calls[0]), **options)
    assert budget.elapsed_s() <= 70
    assert result.faults == []
    plans = [line["steps"] for line in ledger_of(tmp_path) if line["event"] == "plan"]
    assert min(plans) < plans[0]


@pytest.mark.usefixtures("stand_in_of_a_second")
def test_a_function_that_slows_down_has_checkpoints_made_by_the_stand_in(model, loaders, tmp_path, own_clock):
    budget = TimeBudget("100s", clock=own_clock)
    faults = {call: takes(own_clock, 3 if call < 4 else 15) for call in range(20)}
    result, lines, _ = emitted(model, loaders, tmp_path, faults, n=12, budget=budget)
    assert budget.elapsed_s() <= 100
    made = [line.get("recipe") for line in lines]
    assert made[:7] == [None] * 7, "by the method as long as there is time for it"
    assert made[7] == made[-1] == "short_fine_tuning"
    assert set(result.reasons) == {"the machine became slower"}


@pytest.mark.usefixtures("stand_in_of_a_second")
def test_a_first_checkpoint_that_never_ends_is_told(model, loaders, tmp_path, own_clock):
    budget = TimeBudget("100s", clock=own_clock)
    with pytest.raises(InputError, match="checkpoint 0 was not done after"):
        emitted(model, loaders, tmp_path, {0: takes(own_clock, 600)}, n=50, budget=budget)
    assert budget.elapsed_s() < 30


def test_a_method_that_hangs_in_its_first_call_is_told(model, loaders, tmp_path, own_clock):
    def unlearn(net, retain, forget, validation, *, seed, plan=None):
        own_clock.passes(600)

    budget = TimeBudget("100s", clock=own_clock)
    with pytest.raises(InputError, match=r"unlearn: its first steps were not done after 49\.0 s"):
        run(model, loaders, tmp_path, method=method_of(unlearn), budget=budget)
    assert budget.elapsed_s() == 49


def epochs_of(clock, seconds):
    def unlearning(net, retain, forget, validation, epochs=8):
        clock[0] += seconds * epochs
        fine(net, retain, forget, validation)

    return method_of(unlearning)


def test_the_refusal_of_a_function_names_the_epochs_that_fit(model, loaders, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    budget = TimeBudget("100s", clock=lambda: now[0])
    with pytest.raises(InputError, match=r"fits 12 of 20 checkpoints in 1 min 40 s .*: lower epochs to 4; 1 are kept"):
        run(model, loaders, tmp_path, n=20, method=epochs_of(now, 1.0), budget=budget)


def test_a_jump_of_the_wall_clock_changes_nothing(model, loaders, tmp_path, monkeypatch):
    jumps = iter([1e9, -1e9, 5e8, 0.0] * 1000)
    monkeypatch.setattr("time.time", lambda: next(jumps))
    result, _, _ = emitted(model, loaders, tmp_path, {}, budget=TimeBudget("8h"))
    assert 0 < result.seconds < 8 * 3600
    assert len(result.reasons) == 0


def test_a_loader_that_breaks_in_the_middle_of_a_run_is_tried_again(model, loaders, tmp_path):
    """A file system that fails once: the function of the participant sees an OSError from its loader."""

    def broken(net):
        raise OSError(errno.EIO, "Input/output error", "images/3/17.png")

    result, lines, _ = emitted(model, loaders, tmp_path, {3: broken})
    assert [line["attempt"] for line in lines] == [0, 0, 0, 1, 0]
    assert len(result.reasons) == 0


def test_the_stand_in_is_no_way_out_where_it_cannot_run(model, loaders, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no")

    monkeypatch.setattr(checkpoint_module, "fine_tune", broken)
    with pytest.raises(InputError, match="short_fine_tuning: checkpoint 2"):
        emitted(model, loaders, tmp_path, dict.fromkeys((2, 3, 4), fail))


def test_members_are_complete_after_every_fault(model, loaders, tmp_path):
    result, _, _ = emitted(model, loaders, tmp_path, {1: fail, 4: not_a_number, 6: out_of_memory})
    with zipfile.ZipFile(result.archive) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 5


def test_the_limit_holds_where_nothing_can_stand_in(model, loaders, tmp_path, monkeypatch, own_clock):
    def broken(*args, **kwargs):
        raise TypeError("train() takes 3 arguments")

    monkeypatch.setattr(checkpoint_module, "fine_tune", broken)
    budget = TimeBudget("100s", clock=own_clock)
    faults = {call: takes(own_clock, 600 if call == 2 else 3) for call in range(5)}
    with pytest.raises(InputError, match="checkpoint 2 was not done after"):
        emitted(model, loaders, tmp_path, faults, budget=budget)
    assert budget.elapsed_s() <= 100
    assert len(list((tmp_path / "checkpoints").rglob("*.pth"))) == 2


def test_an_error_of_the_system_is_no_fault_of_the_disk(model, loaders, tmp_path, monkeypatch):
    def no_process(*_):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(sys.modules["kit.emit"], "run_jobs", no_process)
    with pytest.raises(BlockingIOError):
        run(model, loaders, tmp_path)


def test_gradients_that_a_method_switched_off_are_on_again_for_the_next(model, loaders, tmp_path):
    """As where an evaluation between two calls of set_grad_enabled fails or is interrupted."""

    def unlearning(net, retain, forget, validation):
        assert torch.is_grad_enabled()
        fine(net, retain, forget, validation)
        torch.set_grad_enabled(False)

    try:
        assert run(model, loaders, tmp_path, method=method_of(unlearning)).reasons == []
        assert torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)
