"""Published retrained models: out and back in, used without being asked for, and every way in which a file is wrong."""

import json
import shutil

import numpy as np
import pytest

from data_stubs import digits
from local_eval import published
from local_eval.__main__ import main
from local_eval.evaluate import read_samples
from local_eval.metric import grid_epsilon
from local_eval.published import export_pool, import_pool, use_published
from local_eval.retrained import fill_retrained, original_pool, retrained_pool
from local_eval.setting import Setting, open_workspace

SETTING = Setting("digits", "random:30", n_train=300, architecture="tinyconv", epochs=1, n_retain_sample=100)
N = 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workspace = open_workspace(SETTING, tmp_path_factory.mktemp("work"))
    fill_retrained(workspace, N, devices=["cpu"], progress=False)
    return workspace


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / f"{trained.name}.npz"
    assert export_pool(trained, path) == N
    return path


def changed(file, tmp_path, **arrays):
    """A copy of the file with other members; None takes one away."""
    with np.load(file) as old:
        members = {name: old[name] for name in old.files} | arrays
    path = tmp_path / "changed.npz"
    np.savez_compressed(path, **{name: value for name, value in members.items() if value is not None})
    return path


def facts_with(file, **facts):
    with np.load(file) as members:
        return json.dumps(json.loads(str(members["facts"])) | facts)


def test_what_comes_back_scores_as_what_went_out(trained, file, tmp_path):
    workspace, n_models = import_pool(file, tmp_path)
    assert (workspace.name, n_models) == (trained.name, N)
    assert workspace.original_path.read_bytes() == trained.original_path.read_bytes()
    ours, theirs = read_samples(workspace, {}, N), read_samples(trained, {}, N)
    np.testing.assert_array_equal(ours.original.confidence, theirs.original.confidence)
    spread = theirs.retrained.confidence.std(axis=0)
    assert (np.abs(ours.retrained.confidence - theirs.retrained.confidence) < 0.02 * spread).all()
    pairs = [(samples.original.repeated(N).confidence, samples.retrained.confidence) for samples in (ours, theirs)]
    epsilons = [grid_epsilon(*pair).epsilon for pair in pairs]
    np.testing.assert_allclose(*epsilons, atol=0.05)


def test_without_the_original_no_weights_travel_and_one_is_trained(trained, tmp_path, capsys):
    out = tmp_path / f"{trained.name}.npz"
    assert main(["pool", "export", str(out), "--setting", str(trained.folder), "--without-original"]) == 0
    with np.load(out) as members:
        assert not [name for name in members.files if name.startswith("original")]
    assert main(["pool", "import", str(out), "--work-dir", str(tmp_path)]) == 0
    assert f"{N} retrained models: {tmp_path}" in capsys.readouterr().out
    workspace = open_workspace(SETTING, tmp_path)
    assert len(retrained_pool(workspace)) == N and not workspace.original_path.exists()
    fill_retrained(workspace, N, devices=["cpu"], progress=False)
    ours, theirs = read_samples(workspace, {}, N), read_samples(trained, {}, N)
    np.testing.assert_allclose(ours.original.confidence, theirs.original.confidence, atol=1e-4)


def test_models_that_are_there_are_kept_and_missing_ones_are_filled(trained, file, tmp_path):
    workspace = open_workspace(SETTING, tmp_path)
    first = retrained_pool(trained).folder / "model_00000.npz"
    shutil.copy(first, retrained_pool(workspace).folder)
    assert import_pool(file, tmp_path)[1] == N
    assert (retrained_pool(workspace).folder / first.name).read_bytes() == first.read_bytes()
    assert len(retrained_pool(workspace)) == N
    fill_retrained(workspace, N, devices=["cpu"], progress=False)  # nothing left to train
    assert retrained_pool(workspace).facts(1) == {"published": file.name}


def test_a_run_uses_what_is_published_for_its_setting(trained, file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(published, "FOLDER", file.parent)
    monkeypatch.setattr(use_published, "__defaults__", (file.parent,))
    options = ["--source", "digits", "--forget", "random:30", "--n-train", "300", "--architecture", "tinyconv"]
    options += ["--epochs", "1", "--n-retain-sample", "100", "--work-dir", str(tmp_path), "--n-models", str(N)]
    assert main(["retrain", *options]) == 0
    assert f"using the {N} retrained models published for this setting" in capsys.readouterr().err
    folder = tmp_path / trained.name
    assert json.loads(str(np.load(folder / "retrained" / "model_00000.npz")["facts"])) == {"published": file.name}


def test_the_commands_give_the_same_file_and_say_how_to_go_on(trained, file, tmp_path, capsys):
    out = tmp_path / "sub" / "pool.npz"
    assert main(["pool", "export", str(out), "--setting", str(trained.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_models"] == N
    with np.load(out) as a, np.load(file) as b:
        assert all(np.array_equal(a[name], b[name]) for name in b.files)
    assert main(["pool", "import", str(out), "--work-dir", str(tmp_path)]) == 0
    assert f"run --setting {tmp_path / trained.name}" in capsys.readouterr().out


def refused(capsys, path, tmp_path):
    assert main(["pool", "import", str(path), "--work-dir", str(tmp_path / "runs")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert str(path) in err
    assert not list((tmp_path / "runs").glob("*")), "nothing is written before the file has been checked"
    return err


@pytest.mark.parametrize("name", [*published._MEMBERS, *published._ORIGINAL])
def test_a_missing_member_is_named(file, tmp_path, capsys, name):
    assert f"has no member {name}" in refused(capsys, changed(file, tmp_path, **{name: None}), tmp_path)


@pytest.mark.parametrize("n_bytes", [0, 10, 1000, -100])
def test_a_truncated_file_is_one_line(file, tmp_path, capsys, n_bytes):
    path = tmp_path / "cut.npz"
    path.write_bytes(file.read_bytes()[:n_bytes])
    assert "copy the file again" in refused(capsys, path, tmp_path)


def test_damaged_contents_are_told_as_what_they_are(file, tmp_path, capsys):
    with np.load(file) as members:
        logits, labels, original = members["retrained_forget"], members["labels_retain"], members["original_model"]
    broken = {
        "retrained_forget is float16": {"retrained_forget": np.full_like(logits, np.nan)},
        "original_test is": {"original_test": logits},
        "other labels of the retain part": {"labels_retain": labels + 1},
        "original_model does not fit": {"original_model": original[:-50]},
        "expected finite seconds": {"seconds": np.full(N, np.nan)},
    }
    for told, arrays in broken.items():
        assert told in refused(capsys, changed(file, tmp_path, **arrays), tmp_path)
    for seconds in (np.float64(1), np.full(N, "soon")):
        assert "expected finite seconds" in refused(capsys, changed(file, tmp_path, seconds=seconds), tmp_path)


@pytest.mark.parametrize(("name", "value"), [("forget", 5), ("epochs", "x"), ("source", None), ("n_train", [1])])
def test_a_setting_of_other_types_is_one_line(file, tmp_path, capsys, name, value):
    facts = facts_with(file)
    told = json.loads(str(facts))
    told["setting"][name] = value
    path = changed(file, tmp_path, facts=np.array(json.dumps(told)))
    assert f"setting with {name} {value!r}" in refused(capsys, path, tmp_path)


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"format": 99}, "format 99"),
        ({"setting": {"source": "digits"}}, "its facts cannot be read"),
        ({"fingerprint": "0" * 16}, "other images of digits"),
        ({"name": "0" * 12}, "is of setting 000000000000"),
    ],
)
def test_facts_of_something_else_are_refused(file, tmp_path, capsys, facts, told):
    assert told in refused(capsys, changed(file, tmp_path, facts=facts_with(file, **facts)), tmp_path)


def test_other_data_is_told_apart(file, tmp_path, capsys, monkeypatch):
    whole = digits.load_source()
    for field, values in (("labels", (whole.train.labels + 1) % 10), ("images", 255 - whole.train.images)):
        part = type(whole.train)(**{**vars(whole.train), field: values})
        other = type(whole)(whole.name, part, whole.validation, whole.test, whole.class_names)
        monkeypatch.setattr(digits, "load_source", lambda other=other: other)
        assert f"other {field}" in refused(capsys, file, tmp_path)


def test_nothing_to_export_is_said(trained, tmp_path, capsys):
    empty = open_workspace(SETTING, tmp_path)
    for argv in (["--setting", str(empty.folder)], []):
        assert main(["pool", "export", str(tmp_path / "x.npz"), *argv]) == 2
    err = capsys.readouterr().err
    assert "has 0 retrained models" in err and "give --setting FOLDER" in err
    for path, words, said in (
        (tmp_path, [], "is a folder: name the file"),
        (tmp_path / "x.npz", ["--n-models", "1"], "-n-models 1"),
    ):
        assert main(["pool", "export", str(path), "--setting", str(trained.folder), *words]) == 2
        assert said in capsys.readouterr().err
    assert 0 not in original_pool(empty) and not (tmp_path / "x.npz").exists()
