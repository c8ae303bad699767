"""The command forecast: a method on every stand-in, what they say together, and what it says where it cannot."""

import json
import re
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kit.errors import BrokenModelError
from kit.methods import get_method
from local_eval.__main__ import main
from local_eval.commands import forecast, options
from local_eval.commands.parser import build_parser
from local_eval.evaluate import evaluate, read_samples
from local_eval.report.next_step import forecast_command
from local_eval.setting import LIKE, Setting, open_workspace
from local_eval.unlearned import fill_unlearned, unlearned_pool
from local_eval.validity import NOT_VALIDATED, Validation, expected_score, geometric_mean

SMALL = {"source": "digits", "n_train": 300, "forget": "random:30", "architecture": "tinyconv", "epochs": 1.0}
KNOWN = Validation(
    ("a", "b", "c", "d"),
    local=np.array([0.001, 0.002, 0.004, 0.02]),
    kaggle=np.array([0.002, 0.01, 0.03, 0.09]),
    spearman=1.0,
    interval=(0.5, 1.0),
    what="These stand-ins together",
)


def test_a_forecast_makes_what_is_missing_on_every_stand_in(monkeypatch, tmp_path, capsys):
    likes = {"competition": SMALL, "competition-clean": SMALL | {"data_seed": 1}}
    monkeypatch.setattr(options, "LIKE", likes)
    monkeypatch.setattr(forecast, "validation_together", lambda settings: KNOWN)
    where = ["--slots", "1", "--work-dir", str(tmp_path / "runs")]
    words = ["forecast", "--method", "finetune", *where]
    assert main([*words, "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    each = [row["expected"] for row in found["stand_ins"].values()]
    assert [*found["stand_ins"]] == [*likes] and each[0] != each[1]
    assert found["expected"] == pytest.approx(geometric_mean(each))
    at = KNOWN.forecast(found["expected"])
    assert [found["kaggle"][key] for key in ("value", "low", "high")] == [at.value, at.low, at.high]
    assert found["spearman"]["value"] == KNOWN.spearman and found["said"] == KNOWN.about(found["expected"])
    assert found["faults"] == {} and found["hyper"] == {} and found["seed"] == 0
    for row, setting in zip(found["stand_ins"].values(), likes.values(), strict=True):
        workspace = open_workspace(Setting(**setting), tmp_path / "runs")
        samples = read_samples(workspace, {"finetune": unlearned_pool(workspace, get_method("finetune"))}, 8)
        assert row["expected"] == pytest.approx(expected_score(samples, evaluate(samples)[0]))
    assert main([*words, "--quiet"]) == 0  # from what is there
    out, err = capsys.readouterr()
    assert err.count("reusing 8 models of finetune") == 2
    assert out.startswith("finetune, 8 models on each stand-in") and KNOWN.about(found["expected"]) in out
    assert "not measured" in out and re.search(rf"together +{found['expected']:.4f}", out)
    assert main([*words, "--n-models", "7"]) == 2
    assert "--n-models 7" in capsys.readouterr().err


def test_a_forecast_without_a_record_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(forecast, "validation_together", lambda settings: None)
    monkeypatch.setattr(options, "LIKE", {"one": SMALL})
    monkeypatch.setattr(forecast, "fill_settings", lambda *args, **options: None)
    monkeypatch.setattr(forecast, "_measured", lambda *args: {"expected": 0.01, "retain": 1.0, "test": 0.9})
    words = ["forecast", "--set", "lr=0.1", "--work-dir", str(tmp_path)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert NOT_VALIDATED in out and "finetune lr=0.1" in out
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kaggle"] is None and found["said"] == NOT_VALIDATED and found["hyper"] == {"lr": 0.1}


def test_a_method_that_breaks_one_stand_in_keeps_the_row_of_the_other(monkeypatch, tmp_path, capsys):
    def measured(args, workspace, method, common):
        if workspace.setting.data_seed:
            raise BrokenModelError("finetune: gives NaN: lower the learning rate")
        return {"expected": 0.01, "retain": 1.0, "test": 0.9}

    monkeypatch.setattr(options, "LIKE", {"one": SMALL, "other": SMALL | {"data_seed": 1}})
    monkeypatch.setattr(forecast, "validation_together", lambda settings: KNOWN)
    monkeypatch.setattr(forecast, "fill_settings", lambda *args, **options: None)
    monkeypatch.setattr(forecast, "_measured", measured)
    assert main(["forecast", "--work-dir", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "0.0100" in out and "other: finetune: gives NaN" in out and "no forecast without" in out
    assert "on Kaggle (" not in out


def test_a_forecast_takes_the_recorded_net_on_a_gpu_too(monkeypatch, tmp_path):
    """Elsewhere --like takes the competition's own there, for which there is no record."""
    seen = []
    monkeypatch.setattr(options, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(options, "workspace_of", lambda args: seen.append(Setting(**options.setting_of(args))))
    monkeypatch.setattr(forecast, "_measured", None)
    args = build_parser("").parse_args(["forecast", "--work-dir", str(tmp_path)])
    for name in LIKE:
        forecast._workspace(args, name)
    assert seen == [Setting(**setting) for setting in LIKE.values()]


def test_the_verdict_names_the_forecast_of_the_same_method(tmp_path):
    workspace = open_workspace(Setting(**SMALL), tmp_path / "runs")
    pool = fill_unlearned(workspace, get_method("finetune", ["lr=0.1"]), 0)  # begun, without a model yet
    rows = {"finetune": SimpleNamespace(n_models=9)}
    evidence = SimpleNamespace(workspace=workspace, pools={"finetune": pool}, rows=rows)
    command = forecast_command(evidence, "finetune")
    args = build_parser("").parse_args(shlex.split(command)[3:])
    assert (args.method, args.set, args.n_models, args.work_dir) == ("finetune", ["lr=0.1"], 9, tmp_path / "runs")
    assert forecast_command(SimpleNamespace(pools={}), "finetune") is None
