"""Misspelt words, wrong numbers, things said twice: one line that names the remedy; and --json that stands alone."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import data_stubs
from kit.__main__ import main as kit
from kit.competition import ExampleDataset, make_loaders
from kit.emit import emit
from kit.errors import InputError
from kit.methods import get_method
from local_eval import assess, retrain, unlearn
from local_eval.__main__ import main
from local_eval.commands.options import go_on
from local_eval.commands.parser import build_parser
from local_eval.retrained import fill_retrained
from local_eval.setting import Setting, open_workspace, reopen
from local_eval.sweep import grid
from local_eval.unlearned import fill_unlearned, unlearned_pool
from notebooks.build import main as build
from notebooks.starter import write_program

ROOT = Path(__file__).parents[1]
SMALL = Setting("digits", "random:20", n_train=200, architecture="tinyconv", epochs=1, n_retain_sample=50)


@pytest.mark.parametrize(
    ("program", "words", "message"),
    [
        (main, ["scoer"], "'scoer' is unknown: did you mean score?: choose from run, sweep"),
        (kit, ["emitt"], "'emitt' is unknown: did you mean emit?"),
        (main, ["run", "--methd", "finetune"], "unknown: --methd finetune: did you mean --method?"),
        (kit, ["emit", "--metod=x"], "unknown: --metod=x: did you mean --method?"),
        (build, ["--methd", "finetune"], "unknown: --methd: did you mean --method?"),
        (main, ["run", "--n-train", "many"], "argument --n-train: 'many' is no whole number"),
        (main, ["run", "--n-train", "0"], "argument --n-train: 0 is below 1"),
        (main, ["run", "--attacks", "gird"], "argument --attacks: 'gird' is unknown: did you mean grid?"),
        (main, ["run", "--epochs"], "argument --epochs: expected one argument"),
        (main, [], "COMMAND"),
    ],
)
def test_a_misspelt_word_is_one_line(program, words, message, capsys):
    with pytest.raises(SystemExit) as end:
        program(words)
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert "--help" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "lr=0.1", "--set", "lr=0.2"], "--set lr=0.2: lr is set twice"),
        (["--set", "lr=0.001,0.01"], "to try several values: python -m local_eval sweep"),
        (["--set", "momntum=0.5"], "has no hyper-parameter 'momntum': did you mean momentum?"),
    ],
)
def test_options_that_contradict_each_other(words, message, tmp_path, capsys):
    assert main(["run", "--work-dir", str(tmp_path), "--slots", "1", "--quiet", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_options_beside_a_setting_must_be_its_own(tmp_path, capsys):
    folder = str(open_workspace(replace(SMALL, epochs=None), tmp_path, progress=False).folder)
    kept = (tmp_path / folder / "setting.json").read_text()
    for words, message in (
        (["--epochs", "2"], f"--epochs beside --setting {folder}: epochs is the recipe's own there, not 2.0: leave"),
        (["--source", "synthetic"], "source is digits there, not synthetic"),
        (["--quick"], "n_train is 200 there, not 10000"),
        (["--like", "competition"], "source is digits there, not gtsrb:super:noise=0.04"),
        (["--forget", "random:20", "--lr", "0.1"], "lr is the recipe's own there, not 0.1"),
    ):
        for command in ("train", "run", "leaderboard"):
            assert main([command, "--setting", folder, *words, "--slots", "1", "--quiet"]) == 2
            err = capsys.readouterr().err
            assert message in err and err.count("\n") == 1
    assert main(["score", folder, "--setting", folder, "--source", "synthetic"]) == 2
    assert "source is digits there, not synthetic" in capsys.readouterr().err
    same = ["--source", "digits", "--epochs", "3", "--n-train", "200", "--architecture", "tinyconv"]
    assert main(["train", "--setting", folder, *same, "--slots", "1", "--quiet"]) == 0
    assert (tmp_path / folder / "setting.json").read_text() == kept


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["score", "--logits", "l.npz", "--setting", "s", "--n-models", "4"],
            "--n-models --setting: says something of",
        ),
        (["report", "--confidences", "c.npz", "--source", "digits"], "--source: says something of pools, and arrays"),
        (["score", "--confidences", "c.npz", "--labels", "y.npy"], "--labels: belongs to --logits: confidences are of"),
        (
            ["pool", "export", "f.npz", "--setting", "s", "--architecture", "a.py:f"],
            "--architecture: is for import alone",
        ),
        (["pool", "import", "f.npz", "--setting", "s", "--n-models", "2"], "--setting --n-models: is for export alone"),
        (
            ["dry-run", "{}", "--setting", "s", "--data", "cifar10", "--epochs", "2"],
            "--data --epochs beside --setting s",
        ),
        (["dry-run", "{}", "--data", "{tree}", "--n-train", "9"], "is an input tree, which is taken as it is"),
        (["dry-run", "{}", "--keep", "x.ipynb"], "program.py is no notebook: leave it out"),
        (["dry-run", "{notebook}", "--keep", "/proc/no/x.ipynb"], "/proc/no: cannot be written"),
        (["dry-run", "no.ipynb"], "no.ipynb: no such file: give a notebook or a script"),
        (["train", "--source", "{tree}"], "a path is written image-folder:"),
        (["score", "gone"], "gone: does not exist: run the step that makes it, or mend the name"),
        (["score", "{tree}/c.npz"], "c.npz: arrays are given with --logits or --confidences"),
        (["run", "--csv", "{tree}"], "is a folder: give the name of a file in it"),
        (["score", "--confidences", "{tree}/c.npz", "--csv", "{tree}"], "is a folder: give the name of a file in it"),
        (["list", "--work-dir", "{tree}", "--csv", "{tree}"], "is a folder: give the name of a file in it"),
        (["compare"], "compare: give the folder of a setting, or two pools"),
        (["report", "gone", "--out", "/proc/no/page.html"], "/proc/no: cannot be written"),
        (["score", "x", "--setting", "nowhere"], "nowhere: is no folder of a setting: give one that run or train made"),
    ],
)
def test_what_a_command_would_ignore_or_cannot_read_is_told(words, message, tmp_path, capsys):
    (tmp_path / "program.py").write_text("")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "retain.csv").write_text("")
    (tmp_path / "tree" / "c.npz").write_text("")
    places = {"tree": tmp_path / "tree", "notebook": write_program(tmp_path / "p.ipynb", ("pass",))}
    assert main([word.format(tmp_path / "program.py", **places) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err and err.count("\n") == 1
    assert "Errno" not in err


def test_more_models_than_there_are(tmp_path, capsys):
    workspace = open_workspace(SMALL, tmp_path, progress=False)
    fill_retrained(workspace, 2, progress=False)
    pool = fill_unlearned(workspace, get_method("finetune"), 3, progress=False)
    assert main(["score", str(pool.folder), "--n-models", "3", "--quiet"]) == 2
    assert "--n-models 3: of retrained there are 2: ask for fewer, or make more" in capsys.readouterr().err
    for kind in ("retrained", "original"):
        assert main(["score", str(workspace.folder / kind), "--quiet"]) == 2
        assert f"{kind}: holds the {kind} models of its setting" in capsys.readouterr().err
    assert main(["compare", str(pool.folder), __file__, "--quiet"]) == 2
    assert "is no pool, archive or checkpoint" in capsys.readouterr().err
    with pytest.raises(InputError, match="3 models of each kind are asked for, there are 2 retrained ones"):
        assess(workspace, pool, n_models=3)
    for make in (retrain, partial(unlearn, method="finetune")):
        with pytest.raises(InputError, match="n_models is 0: expected 1 or more"):
            make(workspace, n_models=0)


def test_a_page_writes_the_table_too(tmp_path, capsys):
    workspace = open_workspace(SMALL, tmp_path, progress=False)
    fill_retrained(workspace, 2, progress=False)
    pool = fill_unlearned(workspace, get_method("finetune"), 2, progress=False)
    table = tmp_path / "new" / "rows.csv"
    assert main(["report", str(pool.folder), "--no-saliency", "--csv", str(table), "--quiet"]) == 0
    names = [line.partition(",")[0] for line in table.read_text().splitlines()]
    assert names[:3] == ["method", "finetune", "do nothing"]


def test_the_default_forget_set_fits_the_data_and_is_told(tmp_path, capsys):
    words = ["--architecture", "tinyconv", "--epochs", "1", "--work-dir", str(tmp_path), "--slots", "1", "--quiet"]
    assert main(["train", "--source", "digits", "--n-train", "160", *words]) == 0
    told = "forget policy random:0.05, the default here: 8 of 160 images: --forget chooses another\n"
    assert capsys.readouterr().err == told
    (folder,) = tmp_path.iterdir()
    assert reopen(folder).setting.forget == "random:0.05"
    assert main(["train", "--source", "digits", "--n-train", "160", "--forget", "random:0.05", *words]) == 0
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == [folder]
    splits, forget = data_stubs.load_by_default("synthetic", n_train=10_000, progress=False)
    assert (len(splits.forget), forget) == (500, Setting("synthetic").forget)


def test_a_sweep_refuses_a_name_given_twice():
    with pytest.raises(InputError, match=r"lr is set twice: write lr=value,value,... once"):
        grid(get_method("finetune"), ["lr=0.1,0.2", "lr=0.3,0.4"])


def test_an_archive_that_is_not_there(tmp_path, capsys):
    assert kit(["verify", str(tmp_path / "nofile.zip")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "nofile.zip: no such file" in err
    assert "PosixPath" not in err
    for words in (["score", str(tmp_path / "no.zip"), "--setting", str(tmp_path)], ["score", "--logits", "no.npz"]):
        assert main(words) == 2
        assert "PosixPath" not in capsys.readouterr().err


@pytest.mark.parametrize("package", ["kit", "local_eval"])
def test_the_version_is_told(package):
    done = subprocess.run([sys.executable, "-m", package, "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{package} {__import__('kit').__version__}\n"


def test_json_is_one_object_whatever_a_method_prints(tmp_path):
    (tmp_path / "loud.py").write_text(
        "import os\n"
        "def unlearning(net, retain_loader, forget_loader, val_loader):\n"
        "    print('a progress bar')\n    os.write(1, b'past python\\n')\n"
    )
    words = ["--source", "digits", "--n-train", "200", "--forget", "random:20", "--architecture", "tinyconv"]
    words += ["--epochs", "1", "--n-models", "2", "--work-dir", str(tmp_path / "runs"), "--slots", "2", "--json"]
    command = [sys.executable, "-m", "local_eval", "run", "--no-page", *words, "--method", str(tmp_path / "loud.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"][0]["name"] == "loud"
    assert "a progress bar" in done.stderr
    assert "past python" in done.stderr


def test_the_settings_of_a_folder_are_listed(tmp_path, capsys):
    assert main(["list", "--work-dir", str(tmp_path / "none")]) == 2
    assert "none: no such folder: give --work-dir" in capsys.readouterr().err
    assert main(["list", "--work-dir", str(tmp_path)]) == 0
    assert "holds no setting yet" in capsys.readouterr().out
    words = ["run", "--source", "digits", "--n-train", "200", "--forget", "random:20", "--architecture", "tinyconv"]
    words += ["--epochs", "1", "--n-models", "2", "--no-page", "--work-dir", str(tmp_path), "--slots", "1", "--quiet"]
    assert main([*words, "--method", "ssd", "--json"]) == 0
    score = json.loads(capsys.readouterr().out)["rows"][0]["score"]
    assert main(["list", "--work-dir", str(tmp_path), "--json", "--csv", str(tmp_path / "list.csv")]) == 0
    pools = {row["pool"].partition("-")[0]: row for row in json.loads(capsys.readouterr().out)["pools"]}
    assert {name: row["n_models"] for name, row in pools.items()} == {"original": 1, "retrained": 2, "ssd": 2}
    assert pools["ssd"]["score"] == score
    assert (tmp_path / "list.csv").read_text().count("\n") == 4
    assert main(["list", "--work-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "digits, tinyconv, fast, forget random:20" in said
    assert "  ssd  " in said
    more = ["unlearn", *(word for word in words[1:] if word != "--no-page"), "--n-models", "3", "--method", "ssd"]
    assert main(more) == main([*more, "--set", "alpha=5"]) == 0
    capsys.readouterr()
    assert main(["list", "--work-dir", str(tmp_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ssd-")]
    assert sorted(row[1:4] for row in rows) == [["ssd", "alpha=1.0", "3"], ["ssd", "alpha=5.0", "3"]]
    assert [row[4] for row in rows] == ["-", "-"]  # the score written down was with two models


def test_a_label_is_listed_and_a_page_opened(tmp_path, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or len(opened) < 2)
    words = ["--source", "digits", "--n-train", "200", "--forget", "random:20", "--architecture", "tinyconv"]
    words += ["--epochs", "1", "--n-models", "2", "--work-dir", str(tmp_path), "--slots", "1", "--quiet"]
    words += ["--method", "ssd"]

    def labels():
        capsys.readouterr()
        assert main(["list", "--work-dir", str(tmp_path), "--json"]) == 0
        return {row["method"]: row["label"] for row in json.loads(capsys.readouterr().out)["pools"]}

    assert main(["run", *words, "--label", "first try", "--open"]) == 0
    said = capsys.readouterr().out
    (pool,) = tmp_path.glob("*/ssd-*")
    assert opened == [(pool / "report.html").as_uri()]
    go_on = next(line.strip() for line in said.splitlines() if line.startswith("  go on: "))
    assert go_on == f"go on: python -m local_eval run --setting {pool.parent} --method ssd --n-models 64"
    assert labels() == {"ssd": "first try", "": ""}
    assert main(["unlearn", *words]) == 0  # without one it keeps that it has
    assert labels()["ssd"] == "first try"
    assert main(["score", str(pool), "--label", "second", "--brief", "--quiet"]) == 0
    assert labels()["ssd"] == "second"
    assert main(["list", "--work-dir", str(tmp_path)]) == 0
    assert "second" in capsys.readouterr().out
    assert main(["report", str(pool), "--open", "--no-saliency", "--quiet"]) == 0
    assert f"--open: no browser was found: open {pool / 'report.html'} yourself" in capsys.readouterr().err
    assert main(["score", "--confidences", "c.npz", "--label", "x"]) == 2
    assert "--label x: is for a pool, and arrays are none" in capsys.readouterr().err


def test_a_search_goes_on_with_the_options_that_it_had(tmp_path):
    workspace = open_workspace(SMALL, tmp_path, progress=False)
    words = ["sweep", "--method", "finetune", "--set", "lr=0.1,0.2", "--seed", "3", "--attacks", "exact"]
    words += ["--delta", "0.1"]
    args = build_parser("").parse_args([*words, "--slots", "1", "--device", "cpu", "--n-models", "80"])
    line = go_on(args, workspace, ["lr=0.1"])
    again = build_parser("").parse_args(shlex.split(line.removeprefix("go on: python -m local_eval ")))
    for name in ("method", "seed", "attacks", "delta", "cap", "bins", "slots", "device", "n_models"):
        assert getattr(again, name) == getattr(args, name)
    assert (again.set, again.setting) == (["lr=0.1"], workspace.folder)
    few = build_parser("").parse_args(["tune", "finetune", "--n-models", "8"])
    assert (
        go_on(few, workspace, []) == f"go on: python -m local_eval run --setting {workspace.folder} --method finetune"
    )


def test_each_checkpoint_is_told_to_a_callback(tmp_path):
    import torch
    from torch import nn

    workspace, told = open_workspace(SMALL, tmp_path, progress=False), []
    options = {"devices": ["cpu"], "progress": False, "on_checkpoint": lambda *what: told.append(what)}
    fill_retrained(workspace, 2, **options)
    fill_unlearned(workspace, get_method("finetune"), 2, **options)
    assert [index for index, _ in told] == [-1, 0, 1, 0, 1]
    assert all(seconds > 0 for _, seconds in told)
    assert len(unlearned_pool(workspace, get_method("finetune"))) == 2
    told.clear()
    data = [ExampleDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), [0, 1, 0, 1]) for _ in range(3)]
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    common = {"out": tmp_path / "out", "n_checkpoints": 3, "progress": False}
    emit(get_method("finetune"), net, make_loaders(*data), on_checkpoint=options["on_checkpoint"], **common)
    assert [index for index, _ in told] == [0, 1, 2]
