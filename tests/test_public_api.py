"""The ten public names: there at once, typed, and the same steps as the command line's."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import data_stubs
import kit
import local_eval
from kit.errors import InputError
from local_eval import Setting, assess, prepare, report, retrain, score_arrays, unlearn
from local_eval.__main__ import main
from local_eval.pool import ModelPool

pytestmark = pytest.mark.usefixtures("rough_predictions")

ROOT = Path(__file__).parents[1]
NAMES = {
    "kit": ["emit", "profile", "submit"],
    "local_eval": ["Setting", "assess", "prepare", "report", "retrain", "score_arrays", "unlearn"],
}
SMALL = Setting("digits", "random:20", n_train=200, architecture="tinyconv", epochs=1, n_retain_sample=100)
ONE = {"devices": ["cpu"]}


def test_exactly_ten_names_are_public():
    assert sum(map(len, NAMES.values())) == 10
    for package, names in NAMES.items():
        module = sys.modules[package]
        assert sorted(module.__all__) == names
        for name in names:
            found = getattr(module, name)
            assert callable(found)
            assert found.__doc__
            hints = inspect.signature(found).parameters.values()
            assert all(p.annotation is not p.empty for p in hints), name
        stub = (ROOT / package / "__init__.pyi").read_text()
        assert all(f"import {name} as {name}" in stub for name in names)


def test_a_submodule_of_the_same_name_does_not_take_its_place():
    code = (
        "import kit.emit, kit.tools.profile, local_eval.assess, local_eval.report.notes\n"
        "from kit import emit, profile, submit\nfrom local_eval import assess, report\n"
        "assert all(type(f).__name__ == 'function' for f in (emit, profile, submit, assess, report))\n"
        "import sys\nassert sys.modules['kit.emit'].emit is emit\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match=r"kit.emit cannot be replaced"):
        kit.emit = None
    with pytest.raises(AttributeError):
        _ = local_eval.emitt


def test_importing_the_packages_imports_nothing_heavy():
    code = "import sys, kit, local_eval; assert not {'torch', 'numpy', 'matplotlib'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    workspace = prepare(SMALL, work_dir=tmp_path_factory.mktemp("runs"))
    retrain(workspace, 8, **ONE)
    return workspace


def gentle(net, retain_loader, forget_loader, val_loader, strength=0.1):
    """Noise on the last layer."""
    import torch

    with torch.no_grad():
        net.fc.weight += strength * torch.randn_like(net.fc.weight)


def test_functions_names_and_hyper_parameters_make_pools(workspace):
    pool = unlearn(workspace, gentle, 2, strength=0.2, **ONE)
    assert pool.identity["hyper"] == {"strength": "0.2"}
    assert len(pool) == 2
    assert unlearn(workspace, gentle, 2, strength=0.2, **ONE).folder == pool.folder  # reused
    assert unlearn(workspace, gentle, 2, **ONE).folder != pool.folder
    with pytest.raises(InputError, match=r"gentle: has no hyper-parameter 'speed': it has strength=0.1"):
        unlearn(workspace, gentle, 2, speed=1)
    with pytest.raises(InputError, match=r"method 'finetun': unknown: did you mean finetune\?"):
        unlearn(workspace, "finetun", 2)


@pytest.fixture(scope="module")
def evaluation(workspace):
    pools = {"mine": unlearn(workspace, gentle, 8, **ONE), "theirs": unlearn(workspace, "finetune", 8, **ONE)}
    return assess(workspace, pools)


def test_results_are_tables_sentences_and_files(workspace, evaluation, tmp_path):
    frame = evaluation.to_frame()
    assert frame["method"].tolist()[:3] == ["mine", "theirs", "do nothing"]
    assert frame["score_low"][0] <= frame["score"][0] <= frame["score_high"][0]
    shown = evaluation._repr_html_()
    assert "<table" in shown
    assert "mine: Undecided: 8 models are too few to tell" in shown
    facts = json.loads(evaluation.save(tmp_path / "new/a.json").read_text())
    assert facts["setting_hash"] == workspace.name
    assert facts["verdicts"]["mine"]["upload"] is None
    assert evaluation.save(tmp_path / "a.csv").read_text().splitlines()[0].startswith("method,n_models,score,")
    assert "<!doctype html>" in evaluation.save(str(tmp_path / "a.html")).read_text()
    with pytest.raises(InputError, match=r"a.xlsx: cannot be written: choose a name that ends in .json, .csv, .html"):
        evaluation.save(tmp_path / "a.xlsx")
    assert "Evidence" not in repr(evaluation)  # no arrays in a notebook's plain text


def test_without_pandas_the_frame_is_refused_and_records_are_there(evaluation, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="needs pandas"):
        evaluation.to_frame()
    assert evaluation.records()[0]["method"] == "mine"


def test_the_command_line_gives_the_same_numbers(workspace, evaluation, capsys, tmp_path):
    pool = unlearn(workspace, "finetune", 8, **ONE)
    csv = tmp_path / "rows.csv"
    assert main(["score", str(pool.folder), "--brief", "--json", "--csv", str(csv)]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["finetune"]["score"] == evaluation.rows["theirs"].score
    assert csv.read_text().splitlines()[1].startswith("finetune,8,")


def test_a_page_of_one_and_of_several(workspace, tmp_path):
    pool = unlearn(workspace, "finetune", 2, **ONE)
    page = report(workspace, pool, tmp_path / "one.html", n_models=2, saliency=False)
    assert page.read_text().startswith("<!doctype html>") or "<html" in page.read_text()
    both = {"a": pool, "b": unlearn(workspace, gentle, 2, **ONE)}
    assert report(workspace, both, tmp_path / "two.html", n_models=2, saliency=False) == tmp_path / "two.html"


def test_data_in_memory_is_a_setting(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (80, 3, 16, 16), dtype=np.uint8), np.arange(80) % 4
    splits = data_stubs.from_arrays(images, labels, forget=[0, 1])
    workspace = prepare(Setting("mine", architecture="tinyconv", epochs=1), data=splits, work_dir=tmp_path)
    pool = unlearn(workspace, "ssd", 2, **ONE)
    retrain(workspace, 2, **ONE)
    assert assess(workspace, pool).evidence.workspace.setting.forget == "given"
    with pytest.raises(InputError, match="leave it out beside data"):
        prepare(SMALL, data=splits, cache_dir=tmp_path)


def test_mistakes_are_one_sentence(workspace, tmp_path):
    with pytest.raises(InputError, match="belongs to retrained"):
        prepare(SMALL, work_dir=tmp_path, original="a.pth")
    with pytest.raises(InputError, match="no models are given"):
        assess(workspace, {})
    with pytest.raises(InputError, match="no such file or folder"):
        assess(workspace, tmp_path / "nowhere")
    empty = ModelPool(workspace.folder / "empty", {"kind": "unlearned", "setting": workspace.name})
    with pytest.raises(InputError):
        assess(workspace, empty)


def test_arrays_are_a_result_too(tmp_path, capsys):
    rng = np.random.default_rng(0)
    u, r = rng.normal(1, 1, (8, 12)), rng.normal(0, 1, (8, 12))
    found = score_arrays(u, r)
    (row,) = found.records()
    assert (row["n_unlearned"], row["n_retrained"], row["n_examples"]) == (8, 8, 12)
    assert row["U-LiRA AUC"] > 0.6
    assert found.to_frame().shape[0] == 1
    assert "8 models, 12 examples" in found._repr_html_()
    np.savez(tmp_path / "c.npz", unlearned_confidence=u, retrained_confidence=r)
    page = tmp_path / "page.html"
    assert main(["report", "--confidences", str(tmp_path / "c.npz"), "--out", str(page), "--quiet"]) == 0
    assert f"report: {page}" in capsys.readouterr().out
    assert "retrained models get" in page.read_text() or found.null is None
    with pytest.raises(InputError, match="log-odds"):
        score_arrays(rng.random((8, 12)), rng.random((8, 12)))


def test_the_project_is_installable():
    tomllib = pytest.importorskip("tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    include = settings["tool"]["setuptools"]["packages"]["find"]["include"]
    assert include == ["kit*", "data_stubs*", "local_eval*", "notebooks*"]
    assert (ROOT / settings["tool"]["setuptools"]["dynamic"]["dependencies"]["file"][0]).exists()
