"""The answer of a page: upload or not, why, and what to try next."""

import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kit.ledger import FILE_NAME, Ledger
from local_eval.assess import Assessment, Form
from local_eval.audit import Interval, diagnose, sentence
from local_eval.audit.lower_bounds import LowerBounds
from local_eval.audit.simulate import simulated_pools
from local_eval.commands.parser import build_parser
from local_eval.evaluate import DO_NOTHING, Row
from local_eval.metric import MetricSpec, exact_epsilon
from local_eval.pool import ModelPool
from local_eval.report.assessment import assessment_lines, sure
from local_eval.report.evidence import Evidence
from local_eval.report.pages import verdict_lines
from local_eval.report.verdict import expected_share, percent, verdict
from local_eval.setting import Setting

NULL_F = 0.17


def interval(value, half=0.0):
    return None if value is None else Interval(value, max(0.0, value - half), value + half, half / 2)


def row(name, score, n_models, retain, test, seconds=1.0):
    accuracies = {"retain_accuracy": 0.9, "forget_accuracy": 0.9, "test_accuracy": 0.88, "whole_test_accuracy": 0.88}
    return Row(
        name=name,
        n_models=n_models,
        score=score,
        forgetting_quality=score,
        retain_ratio=retain,
        test_ratio=test,
        mean_epsilon=2.0,
        seconds=seconds,
        time_ratio=seconds / 10,
        epsilon=np.zeros(3),
        **accuracies,
    )


def evidence(
    score=0.1, predicted=0.1, half=0.005, *, n_models=64, above=0.99, starter="finetune", retain=1.0, test=1.0, **pools
):
    """One method called mine, of this score and expectation, above the starter with this probability."""
    quality = score / (retain * test)
    form = Form(
        quality=interval(quality, half),
        score=interval(score, half),
        null=interval(1.2 * NULL_F),
        null_at_512=interval(NULL_F),
        share=interval(score / NULL_F),
        predicted=interval(predicted, half),
    )
    d = diagnose(*simulated_pools(64, 20, np.random.default_rng(0), **pools), attack=exact_epsilon)
    none = np.array([], int)
    bounds = LowerBounds(np.zeros(20), (None,) * 20, 0.05, (32, 32))
    ratios = interval(retain), interval(test)
    forms = {"grid": form, "exact": form}
    assessment = Assessment("mine", n_models, forms, *ratios, d, sentence(d), bounds, none, none)
    rows = {"mine": row("mine", score, n_models, retain, test), DO_NOTHING: row(DO_NOTHING, 0.0, n_models, 1.0, 1.0)}
    if starter:
        rows[starter] = row(starter, 0.006, n_models, 1.0, 1.0)
    return Evidence(
        workspace=SimpleNamespace(folder=Path("runs/abc"), setting=Setting("synthetic")),
        pools={"mine": None},
        faults={},
        spec=MetricSpec(),
        attacks="grid",
        rows=rows,
        assessments={"mine": assessment} if n_models >= 8 else {},
        above={("mine", starter): above} if starter else {},
        starter=starter,
    )


@pytest.mark.parametrize(
    ("case", "upload", "headline"),
    [
        ({"predicted": 0.06}, True, "Upload"),
        ({"predicted": 0.045}, True, "Upload, though it is a close call"),
        ({"predicted": 0.041}, False, "Do not upload yet, though it is a close call"),
        ({"predicted": 0.03}, False, "Do not upload yet"),
        ({"predicted": 0.06, "above": 0.01}, False, "Do not upload: the starter's own fine-tuning scores more"),
        ({"predicted": 0.06, "above": 0.5}, True, "Upload"),
        ({"score": 0.0, "predicted": None}, False, "Do not upload: the score is 0"),
        ({"score": 0.1, "predicted": None}, None, "Undecided: what 512 models would get cannot be told from 64"),
        ({"n_models": 16}, None, "Undecided: 16 models are too few to tell"),
        ({"n_models": 4}, None, "Nothing can be said: 4 models are too few"),
    ],
)
def test_upload_or_not(case, upload, headline):
    found = verdict(evidence(**case), "mine")
    assert found.upload is upload and found.headline.replace("’", "'") == headline
    assert found.reasons
    assert found.command == "python -m local_eval list --work-dir runs"


def pool_of(folder, method, settings=(), **further):
    pool = ModelPool(folder, {"kind": "unlearned", "method": "mine", "seed": 0, **further})
    if method:
        Ledger(folder / FILE_NAME).append("start", method=method, settings=list(settings))
    return pool


UPLOAD = "notebooks.build --method scrub --set lr=0.1 --out mine/mine.ipynb"
MORE = "local_eval run --setting runs/abc --method 'a b.py' --set x=1 --seed 2 --limit 60s --n-models 64"


@pytest.mark.parametrize(
    ("case", "pool", "command"),
    [
        ({}, {"method": "scrub", "settings": ["lr=0.1"]}, UPLOAD),
        ({}, {"method": ""}, "local_eval score POOL"),
        ({"predicted": 0.03}, {"method": "scrub"}, "local_eval tune scrub --setting runs/abc --n-models 64 --limit 2h"),
        ({"predicted": 0.03}, {"method": "a b.py"}, "local_eval leaderboard --setting runs/abc --n-models 64"),
        ({"n_models": 16}, {"method": "a b.py", "settings": ["x=1"], "seed": 2, "limit_s": 60}, MORE),
        ({"n_models": 4}, {"method": ""}, "local_eval score POOL"),
    ],
)
def test_a_verdict_ends_in_a_command(tmp_path, case, pool, command):
    found = replace(evidence(**case), pools={"mine": pool_of(tmp_path / "pool", **pool)})
    told = verdict(found, "mine")
    assert told.command == f"python -m {command}".replace("POOL", str(tmp_path / "pool"))
    assert verdict_lines({"mine": told})[-1] == f"  go on: {told.command}"
    words = shlex.split(told.command)[2:]
    if words[0] == "local_eval":
        build_parser("").parse_args(words[1:])


def test_a_broken_evaluation_ends_in_what_mends_it():
    found = replace(evidence(), faults={"": "no retrained models"})
    assert verdict(found, "mine").command == "python -m local_eval retrain --setting runs/abc"
    found = replace(evidence(), pools={}, faults={"mine": "broken"})
    assert verdict(found, "mine").command == "python -m local_eval list --work-dir runs"


def test_what_is_broken_is_said_and_nothing_else():
    e = evidence()
    broken = Evidence(e.workspace, {}, {"mine": "model_3.npz: has NaN"}, e.spec, "grid")
    found = verdict(broken, "mine")
    assert found.upload is None and found.reasons[0] == "model_3.npz: has NaN." and not found.fault


def test_the_fault_is_the_diagnosis_unless_accuracy_costs_more():
    assert "vary too little" in verdict(evidence(spread=0.3), "mine").fault
    assert "too sure" in verdict(evidence(shift=2.0), "mine").fault
    lost = verdict(evidence(score=0.04, retain=0.5, test=0.6), "mine")
    assert "lose accuracy: retain 0.500" in lost.fault and "try next: more training on the retain set" in lost.fault
    assert any("Lost accuracy costs 70% of the score" in reason for reason in lost.reasons)
    assert "vary too little" in verdict(evidence(score=0.001, retain=0.5, test=0.6, spread=0.3), "mine").fault


def test_without_the_starter_the_page_says_how_to_have_it():
    found = verdict(evidence(starter=None), "mine")
    assert found.upload is True
    assert any("python -m local_eval unlearn --setting runs/abc --n-models 64" in reason for reason in found.reasons)


def test_reasons_name_time():
    assert not any("retraining here" in reason for reason in verdict(evidence(), "mine").reasons)
    slow = evidence()
    slow.rows["mine"] = row("mine", 0.1, 64, 1.0, 1.0, seconds=5.0)
    (short,) = [reason for reason in verdict(slow, "mine").reasons if "takes 50% of the time of retraining" in reason]
    assert "takes 10.0 s only, so the share says nothing" in short and "rejects" not in short
    slow.rows["mine"] = replace(slow.rows["mine"], seconds=300.0)
    assert any("rejects methods above 20%" in reason for reason in verdict(slow, "mine").reasons)


def test_the_share_expected_is_one_of_the_null_at_512_and_no_prediction_says_why():
    e = evidence(predicted=0.085)
    assert any("50%" in r and f"of the {NULL_F:.3f} attainable then" in r for r in verdict(e, "mine").reasons)
    forms = {"grid": replace(e.assessments["mine"].forms["grid"], predicted=None, unpredicted="the fit is no fit")}
    e.assessments["mine"] = replace(e.assessments["mine"], forms=forms)
    assert "Nothing is predicted for 512 models: the fit is no fit." in verdict(e, "mine").reasons


def test_shares_and_probabilities_in_words():
    form = evidence(predicted=0.085).assessments["mine"].forms["grid"]
    assert expected_share(form).value == pytest.approx(0.5)
    assert (percent(0.5), percent(0.034), percent(0.0)) == ("50%", "3.4%", "0%")
    assert (sure(1.0), sure(0.0), sure(0.5)) == ("over 99.9%", "under 0.1%", "50.0%")


def test_few_subjects_and_bounds_that_say_nothing_are_told():
    assessment = evidence().assessments["mine"]
    text = "\n".join(assessment_lines(replace(assessment, n_independent=5)))
    assert "rest on 5 independent examples" in text and "epsilon is at least: -" in text and "nan" not in text
    assert "independent examples" not in "\n".join(assessment_lines(replace(assessment, n_independent=30)))
