"""Mixtures: shares at every number of checkpoints, each checkpoint its component's, one plan for unequal components."""

import itertools
import pickle
import random
from dataclasses import replace

import pytest
import torch

from kit.__main__ import main
from kit.budget import TimeBudget
from kit.checkpoint import unlearn_once
from kit.competition import TensorLoader
from kit.errors import InputError
from kit.ledger import Ledger
from kit.methods import get_method, method_of, mixture_of
from kit.methods.shared.mixture import interleaving
from kit.plan import Plan
from kit.schedule import Run, Scheduler
from kit.submit import read_problem
from kit.tools.profile import profile
from local_eval.models import tinyconv
from tests.test_kit_emit import ledger_of, members, run

TOSHI_K = "mixture(transpose=246, pseudo_label=266)"
QUICK = ["transpose.epochs=1", "pseudo_label.epochs=1", "pseudo_label.label_epochs=1"]


def test_the_fifth_prizes_shares_hold_for_any_number_of_checkpoints():
    method = get_method(TOSHI_K)
    turns = [method.component_of(index) for index in range(1024)]
    assert (turns[:512].count(0), turns[:512].count(1)) == (246, 266)
    assert turns[512:] == turns[:512]
    assert [turns[:n].count(0) for n in (8, 32, 64)] == [round(n * 246 / 512) for n in (8, 32, 64)]


def test_no_share_is_off_by_a_whole_checkpoint_however_many_are_made():
    numbers = random.Random(0)
    for _ in range(200):
        weights = tuple(numbers.randint(1, 30) for _ in range(numbers.randint(2, 6)))
        turns, counts, most = interleaving(weights), [0] * len(weights), 1 - 1 / (2 * len(weights) - 2)
        for n in range(1, 2 * sum(weights)):
            counts[turns[(n - 1) % len(turns)]] += 1
            quota = [n * weight / sum(weights) for weight in weights]
            assert max(abs(c - q) for c, q in zip(counts, quota, strict=True)) <= most + 1e-9, (weights, n)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mixture(transpose=1, pseudolabel=1)", "method 'pseudolabel': unknown: did you mean pseudo_label"),
        (
            "mixture(transpose=1, pseudo_label=0)",
            "pseudo_label has the weight 0: expected a whole number of at",
        ),
        ("mixture(transpose=-3, pseudo_label=1)", "transpose has the weight -3: expected a whole number"),
        ("mixture(transpose=0.5, pseudo_label=0.5)", "transpose has the weight 0.5: expected a whole number"),
        ("mixture(transpose=, finetune=1)", "transpose has the weight : expected a whole number"),
        ("mixture(transpose, finetune=1)", "transpose: expected NAME=WEIGHT"),
        ("mixture(=1, finetune=1)", "=1: expected NAME=WEIGHT"),
        ("mixture(transpose=1,)", "an empty part: expected NAME=WEIGHT"),
        ("mixture()", "an empty part"),
        ("mixture(transpose=1, finetune=1", r"expected mixture\(NAME=WEIGHT, NAME=WEIGHT\)"),
        ("mixture(transpose=1, mixture(finetune=1, ssd=1)=1)", "a mixture holds no mixture"),
        ("mixture(transpose=1)", "has one component: name two methods or more"),
        ("mixture(transpose=1, transpose=2)", "transpose is in it twice"),
        ("mixture(transpose=1, finetune=1000003)", "the weights add up to 1000004: take smaller ones"),
        ("mixture(transpose=1, nowhere.py=1)", "nowhere.py: no such file"),
        ("mixtur(transpose=1, finetune=1)", r"unknown: .*mixture\(NAME=WEIGHT, \.\.\.\)"),
    ],
)
def test_a_mistake_in_a_mixture_is_one_line(spec, message):
    with pytest.raises(InputError, match=message) as told:
        get_method(spec)
    assert "\n" not in str(told.value)


def test_a_function_without_a_plan_is_no_component(participant):
    path = participant("def unlearning(net, a, b, c): pass\n")
    with pytest.raises(InputError, match=r"mine takes no plan of steps, by which a mixture shares the time: let its"):
        get_method(f"mixture({path}=1, finetune=1)")


def test_hyper_parameters_are_set_by_component():
    method = get_method(TOSHI_K, ["transpose.epochs=2", "pseudo_label.lr=0.01"])
    first, second = method.components
    assert (first.settings["epochs"], second.settings["epochs"]) == (2, 3)
    assert (first.settings["lr"], second.settings["lr"]) == (0.001, 0.01)
    assert method.settings["transpose.epochs"] == 2
    with pytest.raises(InputError, match=r"has no hyper-parameter 'epochs': it has transpose.epochs=3"):
        get_method(TOSHI_K, ["epochs=2"])


def test_its_identity_covers_every_component(participant):
    path = participant("def unlearn(net, a, b, c, *, seed, plan=None, strength=1): plan.steps(1)\n")
    mixture = f"mixture({path}=1, finetune=2)"
    plain = get_method(mixture).identity
    others = [
        get_method(mixture, ["mine.strength=2"]).identity,
        get_method(mixture, ["finetune.lr=0.5"]).identity,
        get_method(f"mixture({path}=2, finetune=1)").identity,
        get_method(f"mixture({path}=1, transpose=2)").identity,
    ]
    participant("def unlearn(net, a, b, c, *, seed, plan=None, strength=1): plan.steps(2)\n")
    others.append(get_method(mixture).identity)
    assert all(one != other for one, other in itertools.combinations([plain, *others], 2))
    assert plain["method"] == "mixture(mine=1, finetune=2)"


def test_it_travels_to_another_process_with_a_participants_file(participant, model, loaders):
    path = participant(
        "import torch\ndef unlearn(net, a, b, c, *, seed, plan=None, strength=1):\n"
        "    plan.steps(1)\n    net.fc.bias.data.fill_(strength)\n"
    )
    method = get_method(f"mixture({path}=1, finetune=1)", ["mine.strength=7"])
    again = pickle.loads(pickle.dumps(method))
    assert again.identity == method.identity
    index = next(index for index in (0, 1) if again.component_of(index) == 0)
    net, _ = unlearn_once(again, model, loaders, seed=0, index=index, plan=Plan())
    assert net.fc.bias.tolist() == [7.0] * 10


def test_an_emission_is_the_checkpoints_of_its_components_under_the_same_seeds(model, loaders, tmp_path):
    method = get_method(TOSHI_K, QUICK)
    result = run(model, loaders, tmp_path / "whole", n=6, method=method)
    assert result.faults == []
    by = [line["recipe"] for line in ledger_of(tmp_path / "whole") if line["event"] == "checkpoint"]
    assert by == [method.components[method.component_of(index)].name for index in range(6)]
    assert sorted(by) == ["pseudo_label"] * 3 + ["transpose"] * 3
    alone = {}
    for part in method.components:
        alone[part.name] = members(run(model, loaders, tmp_path / part.name, n=6, method=part).archive)
    ours = members(result.archive)
    for (name, data), recipe in zip(sorted(ours.items()), by, strict=True):
        assert [data == alone[one][name] for one in ("transpose", "pseudo_label")] == [
            recipe == "transpose",
            recipe == "pseudo_label",
        ]


def test_an_interrupted_emission_goes_on_to_the_same_archive_and_no_other_mixtures(model, loaders, tmp_path):
    method, calls = get_method(TOSHI_K, QUICK), []
    whole = run(model, loaders, tmp_path / "whole", n=5, method=method)

    def stop(*loaders, **told):
        calls.append(told["seed"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*loaders, **told)

    original = method.parts[1].function
    stopping = replace(method, parts=(method.parts[0], replace(method.parts[1], function=stop)))
    with pytest.raises(KeyboardInterrupt):
        run(model, loaders, tmp_path / "cut", n=5, method=stopping)
    other = get_method("mixture(transpose=1, pseudo_label=2)", QUICK)
    with pytest.raises(InputError, match="belongs to another run"):
        run(model, loaders, tmp_path / "cut", n=5, method=other)
    again = run(model, loaders, tmp_path / "cut", n=5, method=method)
    assert members(again.archive) == members(whole.archive)


# -- one plan --------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def of_two(clock, taken, slower=1.0):
    """A mixture, 3 to 1, of a cheap and of a dear method: 10 steps of 0.5 s after 1 s, 40 of 1 s after 2 s; from the
    fifth checkpoint on everything takes `slower` times as long."""

    def part(name, wanted, fixed_s, step_s):
        def unlearn(net, retain, forget, validation, *, seed, plan=None):
            steps = plan.steps(wanted)
            taken.append((name, steps))
            made = len(taken) - 6  # three measurements of each before
            clock[0] += (fixed_s + steps * step_s) * (slower if made > 4 else 1.0)
            net.fc.bias.data.fill_(torch.randn(()).item())

        return method_of(unlearn, name)

    return mixture_of([part("cheap", 10, 1.0, 0.5), part("dear", 40, 2.0, 1.0)], [3, 1])


def emitted(clock, model, loaders, out, limit, n=16, **options):
    taken = []
    budget = TimeBudget(limit, clock=lambda: clock[0])
    run(model, loaders, out, n=n, method=of_two(clock, taken, **options), budget=budget)
    return taken[6:], [line for line in ledger_of(out) if line["event"] == "plan"], budget


def test_all_steps_are_taken_where_they_fit_and_a_dear_component_is_no_slower_machine(clock, model, loaders, tmp_path):
    """16 checkpoints take 12 x 6 s + 4 x 42 s = 240 s."""
    taken, plans, _ = emitted(clock, model, loaders, tmp_path, "340s")
    assert sorted(set(taken)) == [("cheap", 10), ("dear", 40)]
    assert len(plans) == 1
    assert (plans[0]["steps"], plans[0]["wanted"], plans[0]["each"]) == (40, 40, [10, 40])
    assert plans[0]["fixed_s"] == pytest.approx((12 * 1 + 4 * 2) / 16)
    assert plans[0]["step_s"] == pytest.approx((12 * 0.5 / 4 + 4 * 1) / 16)


def test_where_they_do_not_fit_each_component_takes_the_same_part_of_its_own(clock, model, loaders, tmp_path):
    taken, plans, budget = emitted(clock, model, loaders, tmp_path, "200s")
    cheap, dear = ({steps for name, steps in taken if name == one} for one in ("cheap", "dear"))
    assert len(plans) == 1
    assert (len(cheap), len(dear)) == (1, 1)
    assert dear == {plans[0]["steps"]}
    assert cheap == {plans[0]["steps"] // 4}
    assert 10 < plans[0]["steps"] < 40
    assert 0.8 * 200 < budget.elapsed_s() <= 200


def test_a_machine_that_slows_down_lowers_both(clock, model, loaders, tmp_path):
    taken, plans, budget = emitted(clock, model, loaders, tmp_path, "340s", slower=2.0)
    assert len(plans) >= 2
    assert plans[-1]["steps"] < 40
    assert dict(taken) == {
        "cheap": plans[-1]["steps"] // 4,
        "dear": plans[-1]["steps"],
    }
    assert budget.elapsed_s() <= 340


def test_a_component_that_fails_while_its_speed_is_measured_is_named(model, loaders, tmp_path):
    def broken(net, retain, forget, validation, *, seed, plan=None):
        raise ZeroDivisionError("a batch was empty")

    method = mixture_of([get_method("finetune"), method_of(broken)], [1, 1])
    with pytest.raises(InputError, match="broken: failed at its first steps: ZeroDivisionError: a batch was empty"):
        run(model, loaders, tmp_path, method=method, budget=TimeBudget("60s"))


def test_a_run_that_goes_on_without_a_limit_keeps_each_components_steps(clock, model, loaders, tmp_path):
    taken = []
    method = of_two(clock, taken)
    ledger = tmp_path / "ledger.jsonl"
    Ledger(ledger).append("plan", steps=20, wanted=40, each=[10, 40])
    schedule = Scheduler(Run(method, Ledger(ledger), TimeBudget(), 4), range(4))
    assert [schedule.next_job().steps for _ in range(4)] == [[5, 20][method.component_of(index)] for index in range(4)]


def test_a_profile_measures_each_component_and_weighs_it_by_its_share(model, loaders):
    made = []

    def noting(name):
        def unlearn(net, retain, forget, validation, *, seed, plan=None):
            plan.steps(1)
            made.append(name)
            net.fc.bias.data.fill_(torch.randn(()).item())

        return method_of(unlearn, name)

    method = mixture_of([noting("cheap"), noting("dear")], [3, 1])
    result = profile(method, model, loaders, n_measured=2, n_checkpoints=100, progress=False)
    assert made[4:] == ["cheap", "cheap", "dear", "dear"], "after two of each that warm up and look inside"
    assert result.shares == (0.75, 0.25)
    phases = {phase: [1.0, 1.0, 5.0, 5.0] if phase == "unlearn" else [0.0] * 4 for phase in result.phases}
    result = replace(result, phases=phases, load_s=0.0, limit_s=150.0)
    assert result.typical["unlearn"] == 2.0
    assert result.project() == 200.0
    assert result.uncertainty_s == pytest.approx(10.0), "the components differ, the runs of each do not"
    assert "75 of 100 checkpoints would, all of them with 75% of the steps" in result.lines()[-1]


# -- the command line and submit -------------------------------------------------------------------------------------


def test_the_command_emits_it_in_two_processes_as_in_one(tree, tmp_path, capsys):
    common = ["emit", "--input", str(tree), "--architecture", f"{tree.parent / 'net.py'}:net", "--method", TOSHI_K]
    common += [word for setting in QUICK for word in ("--set", setting)] + ["--n-models", "4", "--quiet"]
    for slots in ("1", "2"):
        assert main([*common, "--out", str(tmp_path / slots), "--slots", slots]) == 0
    assert "4 checkpoints in" in capsys.readouterr().out
    assert members(tmp_path / "1/submission.zip") == members(tmp_path / "2/submission.zip")


def test_the_command_tells_a_mistake_in_one_line(tree, capsys):
    code = main(["emit", "--input", str(tree), "--method", "mixture(transpose=0, finetune=1)", "--quiet"])
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("\n") == 1
    assert "transpose has the weight 0" in error


def test_the_command_says_what_its_components_are(capsys):
    assert main(["methods", TOSHI_K]) == 0
    out = capsys.readouterr().out
    assert "Transposed weights" in out
    assert "Pseudo-labels" in out
    assert "transpose.epochs = 3" in out


def test_it_is_given_the_fast_loader(tree):
    method = get_method(TOSHI_K)
    assert method.loader is TensorLoader
    _, loaders = read_problem(tree, method, "cpu", architecture=tinyconv, progress=False)
    assert isinstance(loaders.retain, TensorLoader)
