"""A sweep: its grid, its pools, its table against plain counting, broken values, the command and the picture."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from kit import checkpoint
from kit.errors import BrokenModelError, InputError
from kit.methods import get_method, with_settings
from local_eval.__main__ import main
from local_eval.report.plots import colour
from local_eval.report.sweep import sweep_table
from local_eval.report.sweep_plot import _positions, plot_sweep
from local_eval.retrained import fill_retrained
from local_eval.setting import Setting, open_workspace, reopen
from local_eval.sweep import CRITERIA, best, fill_sweep, grid
from local_eval.unlearned import broken_reason, fill_points, fill_unlearned

SETTING = Setting("digits", "random:30", n_train=300, architecture="tinyconv", epochs=1, n_retain_sample=100)
OPTIONS = {"devices": ["cpu"], "progress": False}
N = 8
PERTURB, FINETUNE = get_method("random_perturbation"), get_method("finetune")
POINTS = ["beta=0.1,1", "lr=0.01"]


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A workspace with N retrained models and a sweep of two points."""
    workspace = open_workspace(SETTING, tmp_path_factory.mktemp("runs"))
    fill_retrained(workspace, N, **OPTIONS)
    fill_sweep(workspace, grid(PERTURB, POINTS), N, **OPTIONS)
    return workspace


@pytest.fixture
def workspace(filled, tmp_path):
    """A copy of it that a test may change."""
    shutil.copytree(filled.folder, tmp_path / filled.name)
    return reopen(tmp_path / filled.name)


@pytest.fixture(scope="module")
def sweep(filled):
    return fill_sweep(filled, grid(PERTURB, POINTS), N, **OPTIONS)


def times(pool):
    return {path.name: path.stat().st_mtime_ns for path in pool.folder.glob("model_*.npz")}


def test_the_grid_has_every_combination_the_first_name_slowest():
    points = grid(PERTURB, ["beta=0.1, 0.7", "epochs=2", "lr=0.1,0.01"])
    assert [point.name for point in points] == [
        "beta=0.1, lr=0.1",
        "beta=0.1, lr=0.01",
        "beta=0.7, lr=0.1",
        "beta=0.7, lr=0.01",
    ]
    assert points[1].settings == ("beta=0.1", "epochs=2", "lr=0.01")
    assert [point.values for point in grid(FINETUNE, ["lr=1,1.0,2"])] == [{"lr": 1.0}, {"lr": 2.0}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "two values or more"),
        (["lr=0.1"], "two values or more"),
        (["lr=0.1,0.1"], "two values or more"),
        (["lr"], "expected name=value"),
        (["lr=0.1,,0.2"], "expected name=value"),
        (["lr=0.1,fast"], "--set lr=fast: expected float"),
        (["beta=0.1,0.2"], "has no hyper-parameter 'beta'"),
    ],
)
def test_grids_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        grid(FINETUNE, settings)


def test_the_models_of_a_sweep_are_those_of_each_point_alone(filled, workspace):
    points = [with_settings(PERTURB, settings) for settings in (("beta=0.1", "lr=0.01"), ("beta=1", "lr=0.01"))]
    inline = [pool.read(2) for pool in fill_points(filled, points, 2, **OPTIONS)]
    for path in workspace.folder.glob("random_perturbation-*"):
        shutil.rmtree(path)
    parallel = fill_points(workspace, points, 2, devices=["cpu"] * 2, progress=False)
    for pool, ours in zip(parallel, inline, strict=True):
        theirs = pool.read(2)
        assert all(np.array_equal(ours[part], theirs[part]) for part in ("forget", "retain", "test"))
        shutil.rmtree(pool.folder)
    for method, ours in zip(points, inline, strict=True):
        alone = fill_unlearned(workspace, method, 2, **OPTIONS).read(2)
        assert all(np.array_equal(alone[part], ours[part]) for part in ("forget", "retain", "test"))


def test_an_interrupted_sweep_makes_only_what_is_missing(workspace):
    points = grid(PERTURB, POINTS)
    pools = [o.pool for o in fill_sweep(workspace, points, N, **OPTIONS).outcomes]
    (pools[1].folder / "model_00003.npz").unlink()
    before = [times(pool) for pool in pools]
    fill_sweep(workspace, [*points, *grid(PERTURB, ["beta=2,3"])], 2, **OPTIONS)
    assert [times(pool) for pool in pools] == before, "two models of each point were there"
    fill_sweep(workspace, points, N, **OPTIONS)
    after = [times(pool) for pool in pools]
    assert after[0] == before[0]
    assert set(after[1]) - set(before[1]) == {"model_00003.npz"}


def test_outcomes_are_what_counting_in_the_pools_gives(filled, sweep):
    retrained = fill_retrained(filled, N, **OPTIONS).read(N)
    labels = {name: np.asarray(part.labels) for name, part in filled.evaluated().items()}
    for outcome in sweep.outcomes:
        logits, gaps = outcome.pool.read(N), []
        for part in ("retain", "forget", "test"):
            ours, theirs = ((pool[part].argmax(-1) == labels[part]).mean(axis=1) for pool in (logits, retrained))
            assert getattr(outcome.row, f"{part}_accuracy") == pytest.approx(ours.mean())
            assert outcome.spread[part] == pytest.approx(ours.std(ddof=1))
            assert sweep.retrained[part] == pytest.approx(theirs.mean())
            gaps.append(abs(ours.mean() - theirs.mean()))
        assert outcome.gap == pytest.approx(sum(gaps) / 3)


def test_each_criterion_chooses_its_best(sweep):
    def chosen(name, key):
        assert best(sweep, CRITERIA[name][0]) is max(sweep.outcomes, key=key)

    chosen("accuracy", lambda outcome: -outcome.gap)
    chosen("score", lambda outcome: (outcome.row.score, -outcome.gap))
    chosen("similarity", lambda outcome: outcome.distance.similarity)


def test_the_table_marks_the_best_and_has_the_rows_beside_it(sweep):
    found = best(sweep, CRITERIA["accuracy"][0])
    table = sweep_table(sweep, found)
    assert table[0][:4] == ("beta", "score", "F", "retain acc")
    assert [line[0] for line in table[1:]] == ["0.1", "1.0", "retrain", "do nothing"]
    assert [line[-1] for line in table[1:]] == ["best" if o is found else "" for o in sweep.outcomes] + ["", ""]
    assert table[3][3] == f"{sweep.retrained['retain']:.1%}"
    assert len({len(line) for line in table}) == 1


def test_a_value_that_breaks_the_model_is_a_row_and_is_not_tried_again(workspace, monkeypatch):
    calls = []
    real = checkpoint.unlearn_once

    def counting(method, *args, **kwargs):
        calls.append(method.settings["lr"])
        return real(method, *args, **kwargs)

    monkeypatch.setattr(checkpoint, "unlearn_once", counting)
    points = grid(FINETUNE, ["lr=0.01,1e38,0.1"])
    sweep = fill_sweep(workspace, points, N, **OPTIONS)
    assert [outcome.row is None for outcome in sweep.outcomes] == [False, True, False]
    assert calls.count(1e38) == 1, "the other models of that value are not tried"
    assert len(calls) == 2 * N + 1
    table = sweep_table(sweep, best(sweep, CRITERIA["accuracy"][0]))
    assert table[2][0] == "1e+38"
    assert table[2][-1] == "no model"
    assert set(table[2][1:-1]) == {"-"}
    again = fill_sweep(workspace, points, N, **OPTIONS)
    assert len(calls) == 2 * N + 1
    assert "NaN or infinite" in again.outcomes[1].broken == broken_reason(again.outcomes[1].pool)
    with pytest.raises(BrokenModelError, match="NaN or infinite"):
        fill_unlearned(workspace, with_settings(FINETUNE, ["lr=1e38"]), 1, **OPTIONS)


WRITES = """
def unlearning(net, retain, forget, val, strength=1.0):
    example = retain.dataset[0]
    assert example["image"].max() > 0, "another point wrote into the cached image"
    example["image"].fill_(0)
    net.fc.bias.data += strength
"""


def test_a_foreign_function_cannot_spoil_the_data_of_another_point(workspace, participant):
    method = get_method(participant(WRITES))
    points = [with_settings(method, [f"strength={strength}"]) for strength in (1, 2)]
    pools = fill_points(workspace, points, 1, **OPTIONS)
    assert [len(pool) for pool in pools] == [1, 1]


def test_values_lie_by_size_where_there_is_room_and_in_order_elsewhere():
    assert _positions([1, 3, 2]) == {1: 1, 3: 3, 2: 2}
    assert _positions([0.1, 1.0, 10.0]) == pytest.approx({0.1: -1, 1.0: 0, 10.0: 1})
    assert _positions([0.01, 1e30, 0.1]) == {0.01: 0, 0.1: 1, 1e30: 2}
    assert _positions([0.0, 0.01, 1.0]) == {0.0: 0, 0.01: 1, 1.0: 2}
    assert _positions([True, False]) == {True: 0, False: 1}
    assert _positions(["a", "b"]) == {"a": 0, "b": 1}
    assert _positions([0.5]) == {0.5: 0}


def test_the_picture_shows_something_of_every_line(sweep, tmp_path):
    path = plot_sweep(sweep, sweep.outcomes[0], tmp_path / "sweep.png")
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    for role in ("retain", "forget", "test", "ink"):
        assert (pixels == list(bytes.fromhex(colour(role)[1:]))).all(axis=1).sum() > 50, role


COMMON = ["--quiet", "--slots", "1", "--method", "random_perturbation"]


def test_the_command_writes_table_and_picture_and_answers_in_json(filled, capsys):
    options = ["sweep", *COMMON, "--setting", str(filled.folder), "--n-models", "2"]
    options += ["--set", "beta=0.1,1", "--set", "lr=0.01,0.1"]
    assert main(options) == 0
    text = capsys.readouterr().out
    assert "best: beta=" in text
    assert "\nretrain " in text, "too few models for a null still have accuracies"
    assert f"go on: python -m local_eval run --setting {filled.folder} --method random_perturbation" in text
    assert "no score: 2 models say nothing of it: it is shown from 8 on" in text
    rows = filled.folder / "sweep.csv"
    assert main([*options, "--json", "--best-by", "similarity", "--csv", str(rows)]) == 0
    assert [line.partition(",")[0] for line in rows.read_text().splitlines()[::4]] == ["method", '"beta=1.0'], rows
    facts = json.loads(capsys.readouterr().out)
    assert facts["swept"] == {"beta": [0.1, 1.0], "lr": [0.01, 0.1]}
    assert len(facts["points"]) == 4
    gammas = [point["distance"]["similarity"] for point in facts["points"]]
    assert facts["best"]["distance"]["similarity"] == max(gammas)
    folder = next(filled.folder.glob("sweep-random_perturbation-*"))
    assert json.loads((folder / "sweep.json").read_text())["best"] == facts["best"]
    assert "| beta | lr |" in (folder / "sweep.md").read_text()
    with Image.open(folder / "sweep.png") as picture:
        assert picture.size[0] > 600
    assert facts["picture"] == str(folder / "sweep.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "beta=0.1"], "two values or more"),
        (["--set", "beta=0.1,x"], "expected float"),
        (["--set", "alpha=0.1,1"], "no hyper-parameter 'alpha'"),
        (["--set", "beta=0.1,1", "--n-models", "1"], "at least 2 models"),
        (["--set", "beta=0.1,1", "--n-models", "4", "--best-by", "score"], "take 8 or more"),
        (["--set", "beta=0.1,1", "--method", "magic"], "unknown"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(options, message, capsys, tmp_path):
    assert main(["sweep", *COMMON, "--work-dir", str(tmp_path / "runs"), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_where_every_value_breaks_the_model_the_exit_code_says_so(filled, capsys):
    options = ["sweep", *COMMON, "--setting", str(filled.folder), "--n-models", "2"]
    assert main([*options, "--method", "finetune", "--set", "lr=1e37,1e38"]) == 1
    assert "no point gave a usable model" in capsys.readouterr().out
