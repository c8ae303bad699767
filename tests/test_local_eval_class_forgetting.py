"""Forgetting whole classes end to end; and the measures of distance to retraining, against plain loops."""

import json

import numpy as np
import pytest

from kit.methods import get_method
from local_eval.__main__ import main
from local_eval.assess import assess
from local_eval.distances import distances
from local_eval.evaluate import DO_NOTHING, NULL, evaluate, forgotten_classes, read_samples
from local_eval.report.notes import notes_on
from local_eval.report.table import distance_table
from local_eval.retrained import fill_retrained, original_pool
from local_eval.setting import Setting, open_workspace
from local_eval.unlearned import fill_unlearned

OPTIONS = {"devices": ["cpu"], "progress": False}
N, CLASS = 8, 3
COMMON = ["--source", "digits", "--n-train", "400", "--architecture", "tinyconv", "--epochs", "2"]
COMMON += ["--quiet", "--slots", "1", "--n-models", str(N)]


def filled(forget, folder, method="finetune", settings=("lr=0.01",)):
    setting = Setting("digits", forget, n_train=400, architecture="tinyconv", epochs=2, n_retain_sample=100)
    workspace = open_workspace(setting, folder)
    fill_retrained(workspace, N, **OPTIONS)
    return workspace, fill_unlearned(workspace, get_method(method, settings), N, **OPTIONS)


@pytest.fixture(scope="module")
def by_class(tmp_path_factory):
    return filled(f"class:{CLASS}", tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def samples(by_class):
    workspace, pool = by_class
    return read_samples(workspace, {"finetune": pool}, N)


def test_the_retrained_models_never_saw_the_class(by_class, samples):
    splits = by_class[0].splits
    assert forgotten_classes(splits).tolist() == [CLASS]
    assert (splits.forget.labels == CLASS).all()
    assert CLASS not in splits.retain.labels
    retrained = fill_retrained(by_class[0], N, **OPTIONS).read(N)
    of_class = splits.test.labels == CLASS
    assert (retrained["test"][:, of_class].argmax(-1) != CLASS).all()
    assert (retrained["forget"].argmax(-1) != CLASS).all()
    assert samples.retrained.accuracy["forgotten_test"].max() == 0


def test_the_score_counts_the_test_images_of_the_retained_classes(by_class, samples):
    workspace, pool = by_class
    labels = workspace.splits.test.labels
    pools = {"u": pool, "r": fill_retrained(workspace, N, **OPTIONS)}
    right = {name: pool.read(N)["test"].argmax(-1) == labels for name, pool in pools.items()}
    retained = labels != CLASS
    rows = {row.name: row for row in evaluate(samples)}
    row = rows["finetune"]
    assert row.test_accuracy == pytest.approx(right["u"][:, retained].mean())
    assert row.forgotten_test_accuracy == pytest.approx(right["u"][:, ~retained].mean())
    assert row.whole_test_accuracy == pytest.approx(right["u"].mean())
    assert row.test_ratio == pytest.approx(right["u"][:, retained].mean() / right["r"][:, retained].mean())
    assert rows[NULL].forgotten_test_accuracy == 0
    assessed = {a.name: a for a in assess(samples, n_resamples=4)[0]}
    assert assessed["finetune"].test_ratio.value == pytest.approx(row.test_ratio)


def test_knowing_the_class_still_earns_nothing(samples):
    """Over all classes doing nothing would have a test ratio above what it has over the retained ones."""
    rows = {row.name: row for row in evaluate(samples)}
    nothing, retrained = rows[DO_NOTHING], samples.retrained
    correct = np.concatenate([retrained.correct["test"], retrained.correct["forgotten_test"]], axis=1)
    assert nothing.forgotten_test_accuracy > 0.3
    assert nothing.whole_test_accuracy / correct.mean() > nothing.test_ratio + 0.02


def test_the_table_and_the_notes_say_what_the_test_accuracy_means(samples):
    rows = evaluate(samples)
    table = distance_table(rows, distances(samples))
    assert table[0][2:5] == ("test acc", "all classes", "forgotten ones")
    assert table[-1][4] == "0.0%"
    assert any("whole classes are forgotten" in note for note in notes_on(rows))
    assert any("of the time of retraining" in note for note in notes_on(rows))


def test_a_random_subset_leaves_the_test_set_whole(tmp_path):
    workspace, pool = filled("random:30", tmp_path)
    samples = read_samples(workspace, {"finetune": pool}, N)
    assert len(forgotten_classes(workspace.splits)) == 0
    rows = evaluate(samples)
    assert rows[0].forgotten_test_accuracy is None
    assert rows[0].whole_test_accuracy == pytest.approx(rows[0].test_accuracy)
    assert len(samples.original.labels["test"]) == len(workspace.splits.test)
    table = distance_table(rows, distances(samples))
    assert "all classes" not in table[0]
    assert not any("whole classes" in note for note in notes_on(rows))


def test_several_classes_can_be_forgotten_and_then_the_similarity_ratio_exists(tmp_path):
    workspace, pool = filled("class:0,7", tmp_path, "do_nothing", ())
    samples = read_samples(workspace, {"do_nothing": pool}, N)
    assert forgotten_classes(workspace.splits).tolist() == [0, 7]
    assert distances(samples)["do_nothing"].similarity == pytest.approx(0.0)


def test_distances_are_those_of_a_plain_loop(by_class, samples):
    workspace, pool = by_class
    pairs = zip(pool.read(N)["forget"], fill_retrained(workspace, N, **OPTIONS).read(N)["forget"], strict=True)
    activation, js, kl = [], [], []
    for ours, theirs in pairs:
        for u, r in zip(ours.astype(float), theirs.astype(float), strict=True):
            p, q = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (r, u))
            m = (p + q) / 2
            activation.append(np.sqrt(((p - q) ** 2).sum()))
            kl.append((p * np.log(p / q)).sum())
            js.append(((p * np.log(p / m)).sum() + (q * np.log(q / m)).sum()) / 2)
    found = distances(samples)["finetune"]
    assert found.activation == pytest.approx(np.mean(activation), rel=1e-5)
    assert found.js == pytest.approx(np.mean(js), rel=1e-5)
    assert found.kl == pytest.approx(np.mean(kl), rel=1e-5)
    assert found.similarity is None, "one class cannot be ranked against the rest"


def test_time_is_told_as_a_share_of_retraining(by_class, samples):
    workspace, pool = by_class
    row = evaluate(samples)[0]
    seconds = fill_retrained(workspace, N, **OPTIONS).read(N)["seconds"].mean()
    assert row.time_ratio == pytest.approx(pool.read(N)["seconds"].mean() / seconds)
    assert original_pool(workspace).read(1)["seconds"].shape == (1,)


def test_run_score_and_compare_work_on_a_forgotten_class(tmp_path, capsys, rough_predictions, undrawn):
    options = [*COMMON, "--forget", f"class:{CLASS}", "--work-dir", str(tmp_path)]
    for method in ("finetune", "negative_gradient"):
        assert main(["run", *options, "--method", method]) == 0
    text = capsys.readouterr().out
    assert "forgotten ones" in text
    assert "whole classes are forgotten" in text
    report = next(tmp_path.glob("*/finetune-*/report.md")).read_text()
    assert "| forgotten ones |" in report
    pools = [str(next(tmp_path.glob(f"*/{name}-*"))) for name in ("finetune", "negative_gradient")]
    assert main(["score", pools[0], "--json", "--quiet"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"][0]["forgotten_test_accuracy"] is not None
    assert facts["distances"]["finetune"]["activation"] > 0
    assert main(["compare", *pools, "--quiet"]) == 0
    assert "which of two scores higher cannot be told from" in capsys.readouterr().out
    sweep = ["sweep", *options, "--method", "finetune", "--set", "lr=0.001,0.1"]
    assert main(sweep) == 0
    assert "forgotten ones" in capsys.readouterr().out
    assert main([*sweep, "--best-by", "similarity"]) == 2
    assert "the forget set has one class" in capsys.readouterr().err
