import functools
import json
import random
import zipfile

import pytest
import torch

import data_stubs
from data_stubs.kaggle_tree import write_tree
from kit import checkpoint as checkpoint_module
from kit.budget import TimeBudget
from kit.cli import process_age_s
from kit.competition import make_loaders, resnet18
from kit.emit import emit
from kit.errors import InputError
from kit.methods import get_method, method_of
from kit.plan import measure_cost
from kit.seeds import checkpoint_seed
from kit.submission import verify
from kit.submit import submit
from tests.conftest import dataset

FINETUNE = get_method("finetune", ["epochs=2"])


def run(model, loaders, out, n=4, method=FINETUNE, **options):
    return emit(method, model, loaders, out=out, n_checkpoints=n, progress=False, **options)


def members(archive):
    with zipfile.ZipFile(archive) as file:
        return {info.filename: file.read(info) for info in file.infolist()}


def ledger_of(out):
    return [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]


def test_the_archive_is_named_and_typed_as_the_contract_says(model, loaders, tmp_path):
    result = run(model, loaders, tmp_path, n=3)
    assert result.archive == tmp_path / "submission.zip"
    assert all(check.ok for check in result.checks), result.checks
    contents = members(result.archive)
    assert list(contents) == [f"kaggle/tmp/unlearned_checkpoint_{i}.pth" for i in range(3)]
    with zipfile.ZipFile(result.archive) as file:
        assert file.testzip() is None
        assert all(info.compress_type == zipfile.ZIP_STORED for info in file.infolist())
        with file.open("kaggle/tmp/unlearned_checkpoint_1.pth") as member:
            state = torch.load(member, weights_only=True)
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {
        k: (v.shape, v.dtype) for k, v in model.state_dict().items()
    }
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"submission.zip", "ledger.jsonl"}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_none_of_them(model, loaders, tmp_path):
    first = run(model, loaders, tmp_path / "a").archive.read_bytes()
    assert run(model, loaders, tmp_path / "b").archive.read_bytes() == first
    ours, others = members(tmp_path / "a/submission.zip"), members(run(model, loaders, tmp_path / "c", seed=1).archive)
    assert not set(ours.values()) & set(others.values())


def test_float16_halves_the_checkpoints_and_counters_stay_integers(model, loaders, tmp_path):
    result = run(model, loaders, tmp_path, n=2, dtype=torch.float16)
    assert all(check.ok for check in result.checks), result.checks
    with zipfile.ZipFile(result.archive) as file, file.open(file.namelist()[0]) as member:
        types = {tensor.dtype for tensor in torch.load(member, weights_only=True).values()}
    assert types == {torch.float16, torch.int64}


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_run_continues_to_the_same_bytes(model, loaders, tmp_path, monkeypatch, after):
    whole = run(model, loaders, tmp_path / "whole").archive.read_bytes()
    plain, count = checkpoint_module.unlearn_once, [0]

    def interrupted(*args, **kwargs):
        if count[0] == after:
            raise KeyboardInterrupt
        count[0] += 1
        return plain(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint_module, "unlearn_once", interrupted)
        run(model, loaders, tmp_path / "parts")
    assert not (tmp_path / "parts/submission.zip").exists()
    (folder,) = (tmp_path / "parts/checkpoints").iterdir()
    assert len(list(folder.iterdir())) == after
    (folder / ".unlearned_checkpoint_9.pth.1").write_bytes(b"half a checkpoint")  # what a kill while writing leaves
    (tmp_path / "parts/submission.zip.partial").write_bytes(b"half an archive")
    with (tmp_path / "parts/ledger.jsonl").open("a") as file:
        file.write('{"event": "checkpo')
    made = []
    monkeypatch.setattr(checkpoint_module, "unlearn_once", lambda *a, **k: made.append(k["index"]) or plain(*a, **k))
    assert run(model, loaders, tmp_path / "parts").archive.read_bytes() == whole
    assert made == list(range(after, 4))


def test_a_missing_checkpoint_alone_is_made_again(model, loaders, tmp_path, monkeypatch):
    whole = run(model, loaders, tmp_path / "whole").archive.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("kit.emit.pack", stop)
        run(model, loaders, tmp_path / "parts")
    (file,) = (tmp_path / "parts/checkpoints").rglob("*_1.pth")
    file.unlink()
    made, plain = [], checkpoint_module.unlearn_once
    monkeypatch.setattr(checkpoint_module, "unlearn_once", lambda *a, **k: made.append(k["index"]) or plain(*a, **k))
    again = run(model, loaders, tmp_path / "parts")
    assert (made, again.archive.read_bytes()) == ([1], whole)
    assert len(again.checkpoint_s) == 4


def stop(*_):
    raise Stop


def test_a_finished_run_is_not_made_again(model, loaders, tmp_path, monkeypatch):
    first = run(model, loaders, tmp_path)
    monkeypatch.setattr(checkpoint_module, "unlearn_once", lambda *a, **k: pytest.fail("made again"))
    again = run(model, loaders, tmp_path)
    assert again.archive.read_bytes() == first.archive.read_bytes()
    assert again.checkpoint_s == first.checkpoint_s


@pytest.mark.parametrize(
    "change", [{"seed": 5}, {"n": 5}, {"dtype": torch.float16}, {"method": get_method("finetune")}]
)
def test_another_runs_folder_is_refused(model, loaders, tmp_path, change):
    before = run(model, loaders, tmp_path).archive.read_bytes()
    with pytest.raises(InputError, match="belongs to another run"):
        run(model, loaders, tmp_path, **change)
    assert (tmp_path / "submission.zip").read_bytes() == before


@pytest.mark.parametrize("change", ["batch size", "data", "method's source", "method's default"])
def test_a_run_of_another_identity_is_refused(model, loaders, tmp_path, participant, change):
    """What a plain look at method's name and number of examples would not tell."""
    text = "def unlearning(net, a, b, c, strength=1.0):\n    net.fc.bias.data.normal_()\n"
    run(model, loaders, tmp_path / "out", method=get_method(participant(text)))
    method, others = get_method(participant(text)), loaders
    if change == "batch size":
        others = make_loaders(*(loader.dataset for loader in loaders), batch_size=4)
    elif change == "data":
        others = make_loaders(dataset(50, 9), *(loader.dataset for loader in loaders[1:]), batch_size=8)
    elif change == "method's source":
        method = get_method(participant(text.replace("normal_()", "normal_(std=2)")))
    else:
        method = get_method(participant(text), ["strength=2"])
    with pytest.raises(InputError, match="belongs to another run"):
        run(model, others, tmp_path / "out", method=method)


def test_a_default_without_a_plain_value_has_an_identity_too(model, loaders, tmp_path, participant):
    text = "import torch\ndef unlearning(net, a, b, c, loss=torch.nn.functional.cross_entropy, more=object()):\n"
    text += "    net.fc.bias.data.normal_()\n"
    first = run(model, loaders, tmp_path, method=get_method(participant(text)))
    assert run(model, loaders, tmp_path, method=get_method(participant(text))).checks == first.checks


def test_a_partial_function_is_a_method(model, loaders, tmp_path):
    def noise(net, retain, forget, validation, scale=1.0):
        net.fc.bias.data.normal_(std=scale)

    method = method_of(functools.partial(noise, scale=3.0))
    assert (method.name, method.settings) == ("noise", {"scale": 3.0})
    assert all(check.ok for check in run(model, loaders, tmp_path, method=method).checks)
    with pytest.raises(InputError, match="belongs to another run"):
        run(model, loaders, tmp_path, method=method_of(functools.partial(noise, scale=2.0)))


def test_a_damaged_checkpoint_is_told_and_made_again(model, loaders, tmp_path, monkeypatch):
    whole = run(model, loaders, tmp_path / "whole").archive.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("kit.emit.pack", stop)
        run(model, loaders, tmp_path / "out")
    (file,) = (tmp_path / "out/checkpoints").rglob("*_2.pth")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"_2\.pth: is damaged: delete it"):
        run(model, loaders, tmp_path / "out")
    assert not (tmp_path / "out/submission.zip").exists()
    file.unlink()
    assert run(model, loaders, tmp_path / "out").archive.read_bytes() == whole


def test_an_unwritable_folder_and_too_small_a_disk_are_told_at_once(model, loaders, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        run(model, loaders, tmp_path / "file" / "out")
    disk(monkeypatch, 1000)
    with pytest.raises(InputError, match=r"0\.0 GB free, still to be written are .* GB in .* and .* GB in .*out"):
        run(model, loaders, tmp_path / "out", work=tmp_path / "tmp")


def disk(monkeypatch, free):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free})())


def test_a_finished_run_asks_for_no_space(model, loaders, tmp_path, monkeypatch):
    first = run(model, loaders, tmp_path)
    disk(monkeypatch, 0)
    assert run(model, loaders, tmp_path).checks == first.checks


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


def test_checkpoints_are_computed_with_one_thread(model, loaders, tmp_path):
    used = []

    def unlearning(net, retain, forget, validation):
        used.append(torch.get_num_threads())
        net.fc.bias.data.fill_(torch.randn(()).item())

    torch.set_num_threads(2)
    try:
        run(model, loaders, tmp_path, n=2, method=method_of(unlearning))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert used == [1, 1]


def test_seeds_of_checkpoints_runs_and_retries_all_differ():
    seeds = {checkpoint_seed(s, i, a) for s in range(4) for i in range(-2, 512) for a in range(3)}
    assert len(seeds) == 4 * 514 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_doing_nothing_makes_an_archive_that_does_not_pass(model, loaders, tmp_path):
    result = run(model, loaders, tmp_path, method=get_method("do_nothing"))
    failed = [check.name for check in result.checks if not check.ok]
    assert failed == ["all different"]
    assert verify(result.archive, 4, model.state_dict()) == result.checks


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


def test_several_processes_write_the_same_submission(tmp_path):
    splits = data_stubs.load("digits", forget="random:8", n_train=40)
    torch.manual_seed(0)
    root = write_tree(splits, resnet18().state_dict(), tmp_path / "tree")
    options = {"root": root, "n_checkpoints": 3, "limit": "1h", "progress": False, "settings": {"lr": 0.003}}
    unlearn = get_method("negative_gradient").function
    archives = []
    for n_processes in (1, 2, 3):
        out = tmp_path / str(n_processes)
        out.mkdir()
        archives.append(submit(unlearn, out=out, work=out / "tmp", devices=["cpu"] * n_processes, **options))
    assert len({archive.read_bytes() for archive in archives}) == 1, "byte for byte"
    assert not list((tmp_path / "1/tmp").iterdir()), "the checkpoints are in the archive, and only there"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": {"speed": 1}}, "has no hyper-parameter 'speed': it has epochs, lr"),
        ({"dtype": "float8"}, "dtype 'float8': unknown"),
        ({"devices": ["tpu"]}, "device 'tpu' cannot be used"),
        ({"limit": "soon"}, "expected a positive time such as 8h"),
    ],
)
def test_mistakes_in_a_run_cell_are_told_before_anything_is_read(tree, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        submit(get_method("finetune").function, root=tree, out=tmp_path, work=tmp_path / "tmp", **options)
    assert not list(tmp_path.iterdir())
