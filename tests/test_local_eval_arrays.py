"""Logits and confidences from elsewhere, judged without a model."""

import json

import numpy as np
import pytest

from kit.errors import InputError
from local_eval.__main__ import main
from local_eval.arrays import judge
from local_eval.audit import families
from local_eval.metric import logit_scaled_confidence

pytestmark = pytest.mark.usefixtures("rough_predictions")

MODELS, EXAMPLES, CLASSES = 12, 40, 5


def logits(seed, shift=0.0, n_models=MODELS):
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(9)
    labels = fixed.integers(0, CLASSES, EXAMPLES)
    found = fixed.normal(size=(EXAMPLES, CLASSES)) + rng.normal(size=(n_models, EXAMPLES, CLASSES))
    found[:, np.arange(EXAMPLES), labels] += 2 + shift
    return found.astype(np.float32), labels


@pytest.fixture
def files(tmp_path):
    """Two .npy files of logits, one of labels, and all three in a .npz."""
    (u, labels), (r, _) = logits(1, shift=0.7), logits(2)
    for name, array in (("u", u), ("r", r), ("y", labels)):
        np.save(tmp_path / f"{name}.npy", array)
    np.savez(tmp_path / "all.npz", unlearned=u, retrained=r, labels=labels)
    return tmp_path


def facts_of(capsys):
    return json.loads(capsys.readouterr().out)


def test_logits_are_judged_as_their_confidences(files, capsys):
    words = ["--logits", str(files / "u.npy"), str(files / "r.npy"), "--labels", str(files / "y.npy")]
    assert main(["score", *words, "--quiet", "--json"]) == 0
    facts = facts_of(capsys)
    assert (facts["n_models"], facts["n_examples"]) == (MODELS, EXAMPLES)
    (u, labels), (r, _) = logits(1, shift=0.7), logits(2)
    confidences = {
        f"{k}_confidence": logit_scaled_confidence(v, labels) for k, v in (("unlearned", u), ("retrained", r))
    }
    np.savez(files / "c.npz", **confidences)
    assert main(["score", "--confidences", str(files / "c.npz"), "--brief", "--json"]) == 0
    assert facts_of(capsys)["epsilon"] == facts["epsilon"]
    measures = facts["measures"]["u"]
    assert measures["activation distance"] == pytest.approx(families.activation_distance(u, r))
    lira = families.u_lira(*confidences.values())
    assert measures["U-LiRA AUC"] == pytest.approx(lira.auc.mean())
    assert {"KLOM (95th percentile)", "TPR at 1% FPR", "JS divergence"} <= measures.keys()
    assert facts["assessments"][0]["forms"]["grid"]["null"] is not None
    assert main(["score", "--logits", str(files / "all.npz"), "--brief", "--json"]) == 0
    assert facts_of(capsys)["epsilon"] == facts["epsilon"]


def test_the_numbers_found_are_said(files, capsys):
    np.save(files / "few.npy", logits(1, n_models=10)[0])
    words = ["--logits", str(files / "few.npy"), str(files / "r.npy"), "--labels", str(files / "y.npy"), "--brief"]
    assert main(["score", *words]) == 0
    told = capsys.readouterr().out
    assert f"(10 unlearned and {MODELS} retrained models, {EXAMPLES} examples, grid attacks)" in told
    assert f"10 unlearned models against {MODELS} retrained ones: the score compares the first 10 of each" in told
    assert main(["score", "--logits", str(files / "all.npz"), "--brief"]) == 0
    assert f"({MODELS} models, {EXAMPLES} examples, grid attacks)" in capsys.readouterr().out


def test_probabilities_on_one_side_are_told():
    (u, labels), (r, _) = logits(1), logits(2)
    u, r = logit_scaled_confidence(u, labels), logit_scaled_confidence(r, labels)
    one_sided = judge(1 / (1 + np.exp(-u)), r, brief=True)
    assert any("the unlearned confidences all lie within 0 and 1" in note for note in one_sided.notes)
    assert not any("within 0 and 1" in note for note in judge(u, r, brief=True).notes)


def test_an_unknown_form_of_the_attacks_is_one_sentence():
    (u, labels), (r, _) = logits(1), logits(2)
    with pytest.raises(InputError, match="attacks 'gird': unknown: choose from grid, exact"):
        judge(u, r, labels, attacks="gird")


def test_two_models_and_one_example_still_give_a_number():
    (u, labels), (r, _) = logits(1), logits(2)
    found = judge(u[:2, :1], r[:2, :1], labels[:1])
    assert found.assessment is None
    assert found.measures == {}
    assert found.null is None
    assert any("more models (2) than examples (1)" in note for note in found.notes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--logits", "u.npy"], "give two .npy files, unlearned and retrained, or one .npz with both"),
        (["--logits", "u.npy", "r.npy"], "give the labels of the forget set too: --labels FILE.npy"),
        (["--logits", "u.npy", "r.npy", "u.npy"], "got 3 files"),
        (["--logits", "u.npy", "gone.npy", "--labels", "y.npy"], "gone.npy: no such file"),
        (["--logits", "gone.npz"], "gone.npz: no such file"),
        (["--logits", "text.npz"], "text.npz: is no readable .npz"),
        (["--logits", "text.npz", "r.npy", "--labels", "y.npy"], "text.npz: is no readable .npy"),
        (["--logits", "all.npz", "r.npy", "--labels", "y.npy"], "all.npz: is an archive of arrays"),
        (["--logits", "other.npz"], "other.npz: has no array unlearned: it holds x"),
        (["--logits", "swapped.npy", "r.npy", "--labels", "y.npy"], "these look transposed: expected (n_models, n_ex"),
        (["--logits", "fewer.npy", "r.npy", "--labels", "y.npy"], "labels 40 examples: all must be of the same forget"),
        (["--logits", "c.npy", "r.npy", "--labels", "y.npy"], "expected numbers (n_models, n_examples, n_classes)"),
        (["--logits", "p.npy", "r.npy", "--labels", "y.npy"], "unlearned logits are probabilities"),
        (["--logits", "u.npy", "r.npy", "--labels", "c.npy"], "expected integers (n_examples,)"),
        (["--logits", "u.npy", "r.npy", "--labels", "high.npy"], "labels run from"),
        (["--logits", "nan.npy", "r.npy", "--labels", "y.npy"], "logit"),
        (["--logits", "u.npy", "u.npy", "--labels", "y.npy"], "unlearned and retrained models have the same numbers"),
        (["--labels", "y.npy"], "--labels: belongs to --logits"),
        (["--confidences", "p.npz"], "a confidence is the log-odds of the label"),
        (["--confidences", "cut.npz"], "these look transposed"),
        (["--confidences", "words.npz"], "unlearned confidences are not an array of numbers: they are <U"),
        (
            ["--confidences", "all.npz"],
            "it holds unlearned, retrained, labels (logits are read",
        ),
        (["--confidences", "logits.npz"], "of logits give the labels too"),
        (["--confidences", "u.npy"], "is one array: expected a .npz"),
        (["--confidences", "all.npz", "--logits", "all.npz"], "one of them at a time"),
        (["pool", "--logits", "all.npz"], "one of them at a time"),
    ],
)
def test_arrays_that_cannot_be_scored(files, monkeypatch, capsys, words, message):
    monkeypatch.chdir(files)
    u, labels = logits(1)
    confidences = logit_scaled_confidence(u, labels)
    p = 1 / (1 + np.exp(-confidences))
    softmax = np.exp(u) / np.exp(u).sum(axis=-1, keepdims=True)
    (files / "text.npz").write_text("text")
    np.savez("other.npz", x=labels)
    np.savez("p.npz", unlearned_confidence=p, retrained_confidence=p)
    np.savez("cut.npz", unlearned_confidence=confidences.T[:, :9], retrained_confidence=confidences.T)
    np.savez("words.npz", unlearned_confidence=confidences.astype(str), retrained_confidence=confidences)
    np.savez("logits.npz", unlearned_confidence=u, retrained_confidence=u)
    broken = u.copy()
    broken[0, 0, 0] = np.nan
    for name, array in (
        ("swapped", u.transpose(1, 0, 2)),
        ("fewer", u[:, :30]),
        ("c", confidences),
        ("p", softmax),
        ("high", labels + 9),
        ("nan", broken),
    ):
        np.save(f"{name}.npy", array)
    assert main(["score", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
