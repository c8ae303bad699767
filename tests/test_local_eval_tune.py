"""The tuner: its draw and its halving by hand, ranges that are none, killed and two at once, the command."""

import argparse
import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from kit.errors import InputError
from kit.methods import get_method, method_names, with_settings
from local_eval import tune
from local_eval.__main__ import main
from local_eval.commands.tune import other_forget_set
from local_eval.report.tune_plot import plot_search
from local_eval.retrained import fill_retrained
from local_eval.setting import Setting, open_workspace, reopen
from local_eval.tune import Result, Search, best_of, jobs, ranges_of, results_of, rungs_of, search

SETTING = Setting("digits", "random:30", n_train=300, architecture="tinyconv", epochs=1, n_retain_sample=100)
OPTIONS = {"devices": ["cpu"], "progress": False}
FINETUNE = get_method("finetune")
RANGES = {"lr": (1e-4, 1e-1), "epochs": (0.1, 0.5)}
RUNGS = (2, 4, 8)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    workspace = open_workspace(SETTING, tmp_path_factory.mktemp("runs"))
    fill_retrained(workspace, RUNGS[-1], **OPTIONS)
    return workspace


def plan_of(seed, **options):
    return Search(FINETUNE, RANGES, RUNGS, seed=seed, **options)


def facts(found):
    """What must not depend on how often a search was interrupted."""
    return [(r.trial, r.settings, r.n_models, r.value, r.retain_accuracy) for r in found]


def result(trial, n_models, value, broken=""):
    return Result(trial, (), n_models, value=value, broken=broken)


@pytest.mark.parametrize("name", [name for name in method_names() if name != "do_nothing"])
def test_every_method_declares_ranges_that_hold_its_defaults(name):
    method = get_method(name)
    ranges = ranges_of(method)
    plan = Search(method, ranges)
    assert plan.settings(0) == ()
    for trial in range(1, 30):
        values = with_settings(method, plan.settings(trial)).settings
        assert all(low <= values[key] <= high for key, (low, high) in ranges.items())


def test_trials_depend_on_the_seed_alone_and_fill_their_ranges():
    drawn = [plan_of(0).settings(trial) for trial in range(1, 41)]
    assert drawn == [plan_of(0).settings(trial) for trial in range(1, 41)]
    assert drawn != [plan_of(1).settings(trial) for trial in range(1, 41)]
    lr = np.array([float(settings[0].removeprefix("lr=")) for settings in drawn])
    for low in (1e-4, 1e-3, 1e-2):  # three decades, searched in equal ratios
        assert 10 <= np.sum((lr >= low) & (lr < 10 * low)) <= 17


def test_whole_numbers_and_choices_come_as_often_as_each_other():
    method = get_method("kookmin")
    plan = Search(method, {"epochs": (2, 4), "share": ["0.1", "0.5"]})
    drawn = [with_settings(method, plan.settings(trial)).settings for trial in range(1, 61)]
    for name, values in (("epochs", {2, 3, 4}), ("share", {0.1, 0.5})):
        counts = Counter(settings[name] for settings in drawn)
        assert set(counts) == values
        assert max(counts.values()) - min(counts.values()) <= 4


def test_the_best_third_goes_on_and_the_highest_first():
    found = [result(trial, 8, value) for trial, value in enumerate((0.1, 0.6, 0.3, 0.5, 0.2, 0.4))]
    assert list(jobs(found, (8, 16, 32), 8)) == [(1, 16), (3, 16), (6, 8), (7, 8)]
    found += [result(trial, 16, value) for trial, value in ((1, 0.1), (3, 0.4))]
    assert list(jobs(found, (8, 16, 32), 6)) == [(3, 32)]  # nothing new: the best of two goes on alone
    assert list(jobs([*found, result(3, 32, 0.4)], (8, 16, 32), 6)) == []


def test_what_gave_no_model_is_never_promoted_nor_the_best():
    found = [result(0, 8, 0.1), result(1, 8, -np.inf, broken="NaN"), result(2, 8, 0.05)]
    assert list(jobs(found, (8, 16), 3)) == [(0, 16)]
    assert best_of(found).trial == 0
    assert best_of([found[1]]) is None


def test_the_best_is_one_of_the_most_models():
    found = [result(0, 8, 0.9), result(0, 16, 0.3), result(1, 8, 0.8), result(1, 16, 0.35)]
    assert (best_of(found).trial, best_of(found).n_models) == (1, 16)


@pytest.mark.parametrize(("n_models", "rungs"), [(32, (8, 16, 32)), (16, (4, 8, 16)), (6, (4, 6)), (4, (4,))])
def test_rungs(n_models, rungs):
    assert rungs_of(n_models) == rungs


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["lr"], "--range lr: expected name=low:high"),
        (["lr=0.1:x"], "'x' is no number"),
        (["lr=0.1:0.01"], "the lower first"),
        (["lr=nan:1"], "two numbers"),
        (["lr=0:inf"], "two numbers"),
        (["lr=0.1"], "two choices or more"),
        (["lr=0.1,word"], "expected float"),
        (["bfloat16=0:1"], "list of choices"),
        (["rate=0.1:1"], "finetune: a range is given for 'rate'"),
    ],
)
def test_a_range_that_is_none_is_one_line(given, words):
    with pytest.raises(InputError) as error:
        ranges_of(FINETUNE, given)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ("", "declares no ranges to search"),
        ("RANGES = [1]", "RANGES is a list"),
        ("RANGES = {'x': (1, 2, 3)}", "two numbers"),
        ("RANGES = {'x': 3}", "tuple (low, high) or a list"),
        ("RANGES = {'y': (1, 2)}", "given for 'y'"),
    ],
)
def test_ranges_of_a_file_are_checked(tmp_path, declared, words):
    file = tmp_path / "own.py"
    file.write_text(f"{declared}\ndef unlearning(net, retain, forget, val, x=1.0): return net\n")
    with pytest.raises(InputError, match=words.replace("(", r"\(").replace(")", r"\)")):
        ranges_of(get_method(str(file)))


def test_what_is_set_is_not_searched():
    assert "lr" not in ranges_of(get_method("finetune", ["lr=0.01"]))


def test_a_search_measures_promotes_and_returns_at_once_when_repeated(filled, monkeypatch):
    plan = plan_of(seed=1)
    found = search(filled, plan, n_trials=6, **OPTIONS)
    assert Counter(r.n_models for r in found) == {2: 6, 4: 2, 8: 1}
    chosen = best_of(found)
    values = {(r.trial, r.n_models): r.value for r in found}
    assert {r.trial for r in found if r.n_models == 4} == set(sorted(range(6), key=lambda t: -values[t, 2])[:2])
    assert chosen.n_models == 8
    with monkeypatch.context() as patch:
        patch.setattr(tune, "_measure", None)
        assert search(filled, plan, n_trials=6, **OPTIONS) == found
    more = search(filled, plan, n_trials=9, **OPTIONS)
    assert facts(found) == [row for row in facts(more) if row in facts(found)]


def searching(folder, seed, n_trials, n_most):
    """In a process of its own: it hangs after so many measurements."""
    torch.set_num_threads(1)
    plain, numbers = tune._measure, iter(range(n_most))
    tune._measure = lambda *args: time.sleep(600) if next(numbers, None) is None else plain(*args)
    search(reopen(folder), plan_of(seed), n_trials=n_trials, **OPTIONS)


def begun(filled, seed, n_trials, n_most=100):
    arguments = (filled.folder, seed, n_trials, n_most)
    process = multiprocessing.get_context("forkserver").Process(target=searching, args=arguments)
    process.start()
    return process


def test_a_killed_search_goes_on_with_the_same_trials(filled):
    process = begun(filled, 2, 6, n_most=5)
    folder = filled.folder / plan_of(2).name
    while not (folder.exists() and len(results_of(folder)) >= 2):
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    known = results_of(folder)
    assert 2 <= len(known) < 9
    found = search(filled, plan_of(2), n_trials=6, **OPTIONS)
    assert all(row in found for row in known)
    for file in folder.iterdir():
        file.unlink()
    assert facts(search(filled, plan_of(2), n_trials=6, **OPTIONS)) == facts(found)


def test_two_searches_at_once_measure_nothing_twice(filled):
    others = [begun(filled, 3, 8) for _ in range(2)]
    for process in others:
        process.join()
        assert process.exitcode == 0
    lines = [json.loads(line) for line in (filled.folder / plan_of(3).name / "ledger.jsonl").read_text().splitlines()]
    counts = Counter((line["trial"], line["n_models"]) for line in lines)
    assert set(counts.values()) == {1}
    assert {trial for trial, n_models in counts if n_models == 2} == set(range(8))


def test_a_limit_ends_the_search_and_counts_over_calls(filled):
    found = search(filled, plan_of(4), limit_s=1.0, **OPTIONS)
    assert found
    spent_s = sum(r.took_s for r in found)
    assert spent_s >= 1.0
    assert search(filled, plan_of(4), limit_s=1.0, **OPTIONS) == found  # spent already
    longer = search(filled, plan_of(4), limit_s=spent_s + 1.0, **OPTIONS)
    assert len(longer) > len(found)


def test_what_takes_too_long_is_measured_but_not_chosen(filled):
    found = search(filled, plan_of(5, longest_s=1e-9), n_trials=2, **OPTIONS)
    assert all("a checkpoint takes" in r.broken and r.retain_accuracy > 0 for r in found)
    assert best_of(found) is None
    folder = filled.folder / plan_of(5).name  # what is too long is no part of what was measured
    assert not any(r.broken for r in results_of(folder)) and best_of(results_of(folder)) is not None
    assert search(filled, plan_of(5), n_trials=2, **OPTIONS) == results_of(folder)


OWN = """
import torch
RANGES = {"x": (0.0, 1.0)}

def unlearning(net, retain, forget, val, *, seed, plan=None, x=0.0):
    if x > 0.5:
        FAULT
    return net
"""


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise ValueError('too much')", "too much"),
        ("next(net.parameters()).data.fill_(float('nan'))", "no model"),
    ],
)
def test_a_trial_that_fails_is_told_and_the_rest_goes_on(filled, tmp_path, fault, words):
    file = tmp_path / "own.py"
    file.write_text(OWN.replace("FAULT", fault))
    method = get_method(str(file))
    found = search(filled, Search(method, ranges_of(method), RUNGS), n_trials=6, **OPTIONS)
    failed = [r for r in found if r.broken]
    assert failed
    assert all(words in r.broken and "\n" not in r.broken for r in failed)
    assert all(float(r.settings[0].partition("=")[2]) > 0.5 for r in failed)
    assert best_of(found).n_models == RUNGS[-1]


def test_a_method_that_fails_as_it_stands_is_an_error(filled, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN.replace("x=0.0", "x=0.9").replace("FAULT", "raise ValueError('always')"))
    with pytest.raises(InputError, match="always"):
        search(filled, Search(get_method(str(file)), {"x": (0.0, 1.0)}, RUNGS), n_trials=2, **OPTIONS)


SOURCE = ["--source", "digits", "--n-train", "300", "--forget", "random:30", "--n-retain-sample", "100"]
WORDS = [*SOURCE, "--architecture", "tinyconv", "--epochs", "1", "--device", "cpu", "--slots", "1", "--quiet"]


def test_the_command_writes_table_page_and_what_to_run_next(tmp_path, capsys):
    words = [
        "tune",
        "finetune",
        *WORDS,
        "--range",
        "lr=1e-4:1e-1",
        "--set",
        "epochs=0.5",
        "--n-models",
        "8",
        "--trials",
        "4",
    ]
    words += ["--check-models", "9", "--fits", "100h", "--work-dir", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["best"]["n_models"] == 8
    assert [row["data_seed"] for row in shown["check"]] == [0, 1]
    assert all(row["best"] > 0 for row in shown["check"])
    with Image.open(shown["picture"]) as picture:
        assert min(picture.size) > 300
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "on a forget set the search never saw, 9 models" in told
    assert "--set epochs=0.5 --set lr=" in told or "best: the method as it stands" in told


def test_the_command_tells_mistakes_in_one_line(tmp_path, capsys):
    words = [*WORDS, "--work-dir", str(tmp_path)]
    for more, what in (
        (["finetune", "--n-models", "2"], "--n-models 2"),
        (["finetune", "--range", "lr=1"], "range of lr"),
        (["finetune", "--range", "lr=1e-3:1", "--set", "lr=0.1"], "--range lr=1e-3:1: --set gives it one value"),
        (["finetune", "--check-models", "-1"], "--check-models -1"),
        (["do_nothing"], "declares no ranges"),
        (["finetune", "--search-seed", "-1"], "--search-seed -1"),
        (["finetune", "--fits", "soon"], "soon"),
    ):
        assert main(["tune", *more, *words]) == 2
        err = capsys.readouterr().err
        assert what in err
        assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())  # nothing was trained before the mistake was told


def test_a_forget_set_that_has_no_other_is_not_called_another(tmp_path, capsys):
    words = ["--source", "digits", "--forget", "class:3", "--n-retain-sample", "100", *WORDS[8:]]
    words = ["tune", "finetune", *words, "--n-models", "4", "--trials", "1", "--check-models", "2", "--json"]
    assert main([*words, "--work-dir", str(tmp_path)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["check"] == []
    page = Path(shown["picture"]).with_name("tune.md").read_text()
    assert "not checked on another forget set: class:3 gives no other" in page


def test_models_that_came_as_files_are_no_check_and_that_is_told_before_the_search(tmp_path):
    workspace = SimpleNamespace(setting=Setting("digits", "class:3", recipe="checkpoints:abc"), folder=tmp_path / "x")
    args = argparse.Namespace(data_root=None, cache_dir=None, quiet=True)
    with pytest.raises(InputError, match=r"came as files; or --check-models 0"):
        other_forget_set(args, workspace)


def test_choices_stand_on_their_ticks_however_they_are_written(tmp_path, monkeypatch):
    plan = Search(get_method("finetune"), {"lr": ["1e-4", "1e-3"], "bfloat16": ["true", "false"]}, RUNGS)
    found = [Result(t, plan.settings(t), 2, value=t / 10) for t in range(1, 8)]
    drawn = []
    plain = Axes.scatter
    monkeypatch.setattr(Axes, "scatter", lambda self, x, *a, **k: drawn.extend(x) or plain(self, x, *a, **k))
    plot_search(plan, found, found[-1], tmp_path / "a.png")
    assert set(drawn) == {0, 1}


def test_the_picture_of_choices_and_numbers(tmp_path):
    plan = Search(get_method("kookmin"), {"epochs": (2, 4), "share": ["0.1", "0.5"], "lr": (1e-4, 1e-2)}, RUNGS)
    found = [Result(t, plan.settings(t), 2, value=t / 10) for t in range(8)]
    with Image.open(plot_search(plan, found, found[-1], tmp_path / "a.png")) as picture:
        assert picture.width > picture.height
