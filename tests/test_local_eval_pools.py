"""Pools and archives as the commands see them: identity, names, gaps, damage; the commands that a page prints."""

import functools
import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch

from kit.checkpoint import unlearn_once
from kit.emit import emit
from kit.errors import BrokenModelError, InputError
from kit.methods import get_method, method_of
from kit.tools.own import build_net
from local_eval import unlearned
from local_eval.__main__ import main
from local_eval.archived import fill_from_archive
from local_eval.evaluate import read_samples
from local_eval.metric import MetricSpec, bins_as_in_report
from local_eval.report.evidence import gather
from local_eval.report.facts import commands, setting_options
from local_eval.report.write import provenance
from local_eval.retrained import fill_retrained, retrained_pool
from local_eval.setting import Setting, keep_workspace, open_workspace, reopen
from local_eval.unlearned import broken_reason, fill_points, fill_unlearned, unlearned_pool

SETTING = Setting("digits", "random:30", n_train=300, architecture="tinyconv", epochs=1, n_retain_sample=100)
OPTIONS = {"devices": ["cpu"], "progress": False}
N = 3
FINETUNE = get_method("finetune")


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A workspace with N retrained and N fine-tuned models."""
    workspace = open_workspace(SETTING, tmp_path_factory.mktemp("work") / "runs")
    fill_retrained(workspace, N, **OPTIONS)
    fill_unlearned(workspace, FINETUNE, N, **OPTIONS)
    return workspace


@pytest.fixture
def workspace(filled, tmp_path):
    """A copy of it that a test may change."""
    shutil.copytree(filled.folder, tmp_path / "runs" / filled.name)
    return reopen(tmp_path / "runs" / filled.name)


@pytest.fixture(scope="module")
def archive(filled, tmp_path_factory):
    out = tmp_path_factory.mktemp("archive")
    loaders = filled.loaders(FINETUNE.loader)
    return emit(FINETUNE, filled.original(), loaders, out=out, n_checkpoints=N, progress=False).archive


def told(capsys, *argv):
    """Run a command that must fail, and give its one line."""
    capsys.readouterr()
    assert main([str(argument) for argument in argv]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    return err


def listed(workspace, capsys, pool):
    """What `list` says of the one whose name begins so."""
    capsys.readouterr()
    assert main(["list", "--work-dir", str(workspace.folder.parent), "--json"]) == 0
    return next(row for row in json.loads(capsys.readouterr().out)["pools"] if row["pool"].startswith(pool))


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2])
def test_a_broken_ledger_beside_an_archive_is_told_as_itself(workspace, archive, tmp_path, capsys, slots):
    shutil.copy(archive, tmp_path / "mine.zip")
    (tmp_path / "ledger.jsonl").write_text("[1]\n")
    command = ["score", tmp_path / "mine.zip", "--setting", workspace.folder, "--slots", slots, "--quiet"]
    assert "ledger.jsonl: is no ledger" in told(capsys, *command)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip])
@pytest.mark.parametrize("n_processes", [1, 2])
def test_damaged_data_is_told_or_saved_anew(workspace, capsys, damage, n_processes):
    path = workspace.folder / "data/retain_images.npy"
    whole = path.read_bytes()
    damage(path)
    with pytest.raises(InputError, match=r"data: are no saved splits"):
        reopen(workspace.folder, checked=True)
    pool = unlearned_pool(workspace, FINETUNE)
    assert "data: are no saved splits" in told(capsys, "score", pool.folder)
    if damage is truncate:  # a process that starts from it says the same
        with pytest.raises(InputError, match="data: are no saved splits"):
            fill_retrained(workspace, N + 2, devices=["cpu"] * n_processes, progress=False)
    again = open_workspace(SETTING, workspace.folder.parent)
    assert path.read_bytes() == whole
    assert not fill_retrained(again, N + 1, **OPTIONS).missing(N + 1)


def test_an_original_that_does_not_load_is_told_by_several_processes(workspace):
    workspace.original_path.write_bytes(b"no model")
    with pytest.raises(InputError, match=r"original_model\.pth: is no state dict"):
        fill_unlearned(workspace, FINETUNE, N + 2, devices=["cpu"] * 2, progress=False)


# -- identity and names ------------------------------------------------------------------------------------------------


def test_the_same_archive_under_two_names_is_one_pool(workspace, archive, tmp_path, capsys):
    shutil.copy(archive, tmp_path / "mine.zip")
    pools = [fill_from_archive(workspace, path, **OPTIONS) for path in (archive, tmp_path / "mine.zip")]
    assert pools[0].folder == pools[1].folder and pools[0].identity == pools[1].identity
    common = ["--setting", str(workspace.folder), "--brief", "--json", "--quiet"]
    for path, name in ((archive, "submission"), (tmp_path / "mine.zip", "mine")):
        assert main(["score", str(path), *common]) == 0
        assert json.loads(capsys.readouterr().out)["rows"][0]["name"] == name
    assert "give each once" in told(capsys, "compare", archive, tmp_path / "mine.zip", *common)


@pytest.mark.parametrize("command", ["compare", "score", "report"])
def test_a_pool_given_twice_is_refused(filled, command, capsys):
    pool = unlearned_pool(filled, FINETUNE).folder
    line = told(capsys, command, pool, f"{pool}/../{pool.name}", "--quiet")
    assert f"is the pool that {pool} is: give each once" in line


def test_two_pools_of_one_method_have_the_same_names_in_score_and_report(workspace, capsys):
    other = fill_unlearned(workspace, get_method("finetune", ["lr=0.01"]), N, **OPTIONS)
    pools = [str(unlearned_pool(workspace, FINETUNE).folder), str(other.folder)]
    assert main(["compare", *pools, "--json", "--quiet"]) == 0
    names = {row["name"] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert main(["report", *pools, "--json", "--quiet", "--no-saliency"]) == 0
    pages = json.loads(capsys.readouterr().out)["pages"]
    assert {"finetune lr=0.001", "finetune lr=0.01"} == set(pages) - {"comparison"} <= names


def test_what_is_left_out_of_unequal_pools_is_said(workspace, capsys):
    pool = fill_unlearned(workspace, get_method("finetune", ["lr=0.01"]), N - 1, **OPTIONS)
    both = ["compare", str(pool.folder), str(unlearned_pool(workspace, FINETUNE).folder), "--brief", "--quiet"]
    note = f"only the first {N - 1} models of each kind are compared, as one has no more: "
    assert main(both) == 0
    said = capsys.readouterr().out
    assert f"{note}finetune lr=0.01 {N - 1}, finetune lr=0.001 {N}, retrained {N}\n" in said
    assert main([*both, "--n-models", str(N - 1)]) == 0
    assert note not in capsys.readouterr().out


def test_models_after_a_gap_do_not_count(workspace, capsys):
    pool = unlearned_pool(workspace, FINETUNE)
    (pool.folder / "model_00001.npz").rename(pool.folder / f"model_{N + 1:05d}.npz")
    assert len(pool) == 1
    assert "finetune: 1 model: the score compares" in told(capsys, "score", pool.folder)
    assert main(["report", str(pool.folder), "--quiet"]) == 1
    assert "1 models" in capsys.readouterr().out
    shutil.copy(pool.folder / "model_00000.npz", pool.folder / "model_00001.npz")
    (pool.folder / f"model_{N - 1:05d}.npz").unlink()
    assert main(["score", str(pool.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["n_models"] == 2
    assert main(["report", str(pool.folder), "--quiet", "--no-saliency"]) == 0


def test_reused_models_are_mentioned(workspace, capsys):
    command = ["unlearn", "--setting", str(workspace.folder), "--n-models", str(N), "--slots", "1"]
    assert main(command) == 0
    pool = unlearned_pool(workspace, FINETUNE).folder
    said = f"reusing {N} models of finetune in {pool}: --fresh makes them anew\n"
    assert capsys.readouterr().err == said
    for option in ("--quiet", "--json"):
        assert main([*command, option]) == 0
        assert capsys.readouterr().err == said
    others = [["retrain"], ["sweep", "--set", "lr=0.001,0.002"], ["run", "--no-page"]]
    for words in others:
        assert main([*words, *command[1:], "--quiet"]) == 0
        err = capsys.readouterr().err
        assert f"reusing {N} retrained models in {workspace.folder / 'retrained'}\n" in err
        assert (f"reusing {N} models of finetune" in err) == (words[0] != "retrain")


def test_fresh_makes_the_unlearned_models_anew_and_keeps_the_retrained_ones(workspace, capsys):
    pool, retrained = unlearned_pool(workspace, FINETUNE), retrained_pool(workspace)
    before = pool.read(N)["forget"]
    changed = {name: -values[0] for name, values in pool.read(1).items() if name != "seconds"}
    pool.add(0, changed, 1.0)  # what an older version of the code may have left
    (pool.folder / "broken.txt").write_text("once")
    kept = [path.stat().st_mtime_ns for path in sorted(retrained.folder.glob("*.npz"))]
    command = ["--setting", str(workspace.folder), "--n-models", str(N), "--slots", "1", "--quiet"]
    assert main(["run", *command, "--no-page"]) == 0
    assert not np.array_equal(pool.read(N)["forget"], before)
    capsys.readouterr()
    for words in (["run", "--no-page"], ["unlearn"]):
        assert main([*words, *command, "--fresh"]) == 0
        assert "models of finetune in" not in capsys.readouterr().err
        assert np.array_equal(pool.read(N)["forget"], before)
    assert not (pool.folder / "broken.txt").exists()
    assert [path.stat().st_mtime_ns for path in sorted(retrained.folder.glob("*.npz"))] == kept


def test_a_name_of_something_else_in_the_table_is_refused(filled):
    pool = unlearned_pool(filled, FINETUNE)
    for name in ("do nothing", "retrained", "retraining"):
        with pytest.raises(InputError, match=f"{name}.: is the name of something else"):
            read_samples(filled, {name: pool}, N)


def test_the_list_shows_scores_of_the_competitions_constants_alone(workspace, tmp_path, capsys):
    common = ["--setting", str(workspace.folder), "--n-models", str(N), "--slots", "1", "--quiet", "--no-page"]
    assert main(["run", *common]) == 0
    assert listed(workspace, capsys, "finetune-")["score"] is not None
    assert main(["run", *common, "--cap", "1"]) == 0
    assert listed(workspace, capsys, "finetune-")["score"] is None


def test_the_list_knows_what_is_known_of_an_archive(workspace, archive, tmp_path, capsys):
    common = ["--setting", str(workspace.folder), "--brief", "--json", "--quiet", "--slots", "1"]
    assert main(["score", str(archive), *common, "--cap", "1"]) == 0
    assert listed(workspace, capsys, "archive-")["score"] is None  # by other constants
    assert main(["score", str(archive), *common]) == 0
    score = json.loads(capsys.readouterr().out)["rows"][0]["score"]
    row = listed(workspace, capsys, "archive-")
    assert (row["score"], row["method"]) == (score, "finetune")
    assert json.loads(row["hyper"]) == unlearned_pool(workspace, FINETUNE).identity["hyper"]
    assert main(["score", str(archive), *common, "--n-models", "2"]) == 0
    assert listed(workspace, capsys, "archive-")["score"] == score  # of all its models still
    pool = workspace.folder / row["pool"]
    (pool / "score.json").unlink()
    assert main(["report", str(pool), "--no-saliency", "--quiet", "--out", str(tmp_path / "page.html")]) == 0
    assert listed(workspace, capsys, "archive-")["score"] == score
    shutil.copy(archive, tmp_path / "mine.zip")  # no ledger beside it
    shutil.rmtree(pool)
    assert main(["score", str(tmp_path / "mine.zip"), *common]) == 0
    row = listed(workspace, capsys, "archive-")
    assert (row["score"], row["method"]) == (score, "checkpoints")


def test_a_pool_of_one_model_does_not_stop_the_others_of_its_folder(workspace, capsys):
    other = get_method("finetune", ["lr=0.5"])
    fill_unlearned(workspace, other, 1, **OPTIONS)
    capsys.readouterr()
    assert main(["score", str(workspace.folder), "--quiet"]) == 0
    out, err = capsys.readouterr()
    single = unlearned_pool(workspace, other).folder
    assert f"left out, as there is one model only: {single.name}" in err and "do nothing" in out
    assert "finetune" in (line := told(capsys, "score", single)) and "needs at least 2" in line and "--n" not in line


def test_a_model_in_a_compression_that_is_unknown_is_broken(workspace):
    pool = unlearned_pool(workspace, FINETUNE)
    file = pool.folder / "model_00000.npz"
    data = bytearray(file.read_bytes())
    data[data.index(b"PK\1\2") + 10] = 99
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"model_00000\.npz: is broken"):
        pool.read(1)


def test_the_commands_of_a_page_say_which_images_are_forgotten(filled):
    assert "--forget" in setting_options(Setting("digits", "random:500"))


def test_a_settings_file_is_left_alone_where_it_says_the_same(workspace):
    path = workspace.folder / "setting.json"
    before = path.stat().st_mtime_ns
    keep_workspace(workspace.setting, workspace.splits, workspace.folder.parent)
    assert path.stat().st_mtime_ns == before


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "sweep", "retrain", "unlearn", "score", "compare", "report", "dry-run"])
def test_no_command_takes_a_negative_number_of_models(filled, command, capsys, tmp_path):
    pool, other = str(unlearned_pool(filled, FINETUNE).folder), str(filled.folder / "retrained")
    given = {
        "sweep": ["--set", "lr=1,2"],
        "score": [pool],
        "compare": [pool, other],
        "report": [pool],
        "dry-run": ["x"],
    }
    argv = [command, *given.get(command, []), "--n-models", "-1"]
    argv += [] if command in ("score", "compare", "report") else ["--work-dir", str(tmp_path)]
    try:
        code = main(argv)
    except SystemExit as refused:  # by the reader of the options
        code = refused.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and re.search("--n-models:? -1\\b", err)
    assert not list(tmp_path.iterdir())


def test_a_partial_function_is_a_method_of_its_own(workspace):
    def shift(net, retain, forget, val, by=0.0):
        net.fc.bias.data += by + torch.randn(10)

    pools = [
        fill_unlearned(workspace, method_of(functools.partial(shift, by=by)), 1, **OPTIONS) for by in (1.0, 1000.0)
    ]
    assert pools[0].folder != pools[1].folder
    assert np.abs(pools[0].read(1)["test"] - pools[1].read(1)["test"]).max() > 100


@pytest.mark.parametrize("reason", ["MemoryError: ", "OutOfMemoryError: CUDA out of memory", "NaN in fc.bias"])
def test_a_shortage_of_memory_is_no_broken_method(workspace, monkeypatch, reason):
    def fails(method, *args, **kwargs):
        if method.hyper["lr"] == 2.0:
            raise BrokenModelError(f"finetune: checkpoint 0 is no model in 3 attempts ({reason})")
        return unlearn_once(method, *args, **kwargs)

    monkeypatch.setattr("kit.checkpoint.unlearn_once", fails)
    methods = [get_method("finetune", [f"lr={lr}"]) for lr in (0.01, 2.0)]
    if "Memory" in reason:
        with pytest.raises(InputError, match="no model in 3 attempts"):
            fill_points(workspace, methods, 1, **OPTIONS)
    else:
        fill_points(workspace, methods, 1, **OPTIONS)
    found = [broken_reason(unlearned_pool(workspace, method)) for method in methods]
    assert found[0] is None
    assert (found[1] is None) == ("Memory" in reason)


# -- commands that are printed -----------------------------------------------------------------------------------------


def test_the_command_line_in_a_report_is_quoted_and_only_there_if_there_was_one(workspace, capsys):
    copy = workspace.folder.parent / "two words"
    shutil.copytree(workspace.folder, copy / workspace.name)
    pool = copy / workspace.name / unlearned_pool(workspace, FINETUNE).folder.name
    assert main(["score", str(pool), "--json", "--brief"]) == 0
    command = json.loads(capsys.readouterr().out)["command"]
    assert shlex.split(command) == ["python", "-m", "local_eval", "score", str(pool), "--json", "--brief"]
    assert provenance(workspace)["command"] is None


MINE = "import torch\ndef unlearning(net, a, b, c, by=1.0): net.fc.bias.data += by * torch.randn(10)"


def run_again(command, *more):
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "local_eval"]
    return main([*words[3:], "--quiet", *more])


@pytest.mark.parametrize("spec", ["mine.py", "mine.py:unlearning", "random_perturbation"])
def test_the_commands_on_a_page_give_the_same_pool_and_page(workspace, participant, spec, monkeypatch, capsys):
    participant(MINE)
    monkeypatch.chdir(workspace.folder.parents[1])
    settings = ["by=0.5"] if "mine" in spec else ["beta=0.3"]
    method = get_method(spec, settings)
    options = {"seed": 3, "limit": "90.5s"}
    pool = fill_unlearned(workspace, method, N, **options, **OPTIONS)
    metric = MetricSpec(delta=0.1, cap=20.0, bins=bins_as_in_report)
    evidence = gather(workspace, {method.name: pool}, spec=metric, attacks="exact")
    run, report = commands(evidence, method.name)
    for option in ("--limit 90.5s", "--bins report", "--delta 0.1", "--cap 20.0", "--attacks exact", "--seed 3"):
        assert option in run
    before = sorted(path.name for path in workspace.folder.iterdir())
    assert run_again(run, "--no-page", "--json", "--slots", "1") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["pools"][method.name] == pool.identity
    assert facts["rows"][0]["score"] == evidence.rows[method.name].score
    assert sorted(path.name for path in workspace.folder.iterdir()) == before, "nothing else was made"
    assert run_again(report, "--no-saliency") == 0


def test_a_function_of_a_notebook_has_no_command_that_makes_it_again(workspace):
    method = method_of(lambda net, retain, forget, val: net.fc.bias.data.add_(torch.randn(10)), "finetune")
    pool = fill_unlearned(workspace, method, N, **OPTIONS)
    assert unlearned.method_options(pool) == ("", [])
    (only,) = commands(gather(workspace, {"finetune": pool}), "finetune")
    assert " report " in only


def test_a_tree_says_what_architecture_the_kit_builds_for_it(workspace, tmp_path, capsys):
    assert main(["tree", "--setting", str(workspace.folder), "--out", str(tmp_path / "tree"), "--json"]) == 0
    architecture = json.loads(capsys.readouterr().out)["architecture"]
    net = build_net(architecture)
    assert net.state_dict().keys() == workspace.original().state_dict().keys()
    assert main(["tree", "--setting", str(workspace.folder), "--out", str(tmp_path / "tree")]) == 0
    assert f"python -m kit emit --input {tmp_path / 'tree'} --architecture {architecture}" in capsys.readouterr().out


def test_all_kinds_of_pools_keep_what_they_are(filled):
    assert retrained_pool(filled).identity == {"kind": "retrained", "setting": filled.name}
    identity = unlearned_pool(filled, FINETUNE).identity
    assert identity.items() >= FINETUNE.identity.items()
    assert (identity["seed"], identity["batch_size"], identity["setting"]) == (0, 64, filled.name)
