"""The main job on a small real data set: pools, their identity and growth, the table, the command line."""

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kit import checkpoint
from kit.budget import TimeBudget
from kit.emit import emit
from kit.errors import InputError
from kit.methods import get_method
from kit.plan import StepCost
from local_eval.__main__ import main
from local_eval.commands.pools import names_of
from local_eval.evaluate import DO_NOTHING, NULL, evaluate, read_samples
from local_eval.metric import grid_epsilon, logit_scaled_confidence
from local_eval.pool import logits_of
from local_eval.report.table import aligned, markdown, table_of
from local_eval.report.write import facts_of
from local_eval.retrained import fill_retrained, fill_settings, original_pool, retrained_pool
from local_eval.setting import Setting, open_workspace, reopen
from local_eval.unlearned import (
    fill_points,
    fill_unlearned,
    limit_facts,
    limit_notes,
    method_options,
    plans_of,
    unlearned_pool,
)

SETTING = Setting(
    source="digits", n_train=300, forget="random:30", architecture="tinyconv", epochs=1, n_retain_sample=100
)
OPTIONS = {"devices": ["cpu"], "progress": False}
N = 4
FINETUNE, PERTURB = get_method("finetune"), get_method("random_perturbation")


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A workspace with N retrained models and N of two methods."""
    workspace = open_workspace(SETTING, tmp_path_factory.mktemp("runs"))
    fill_retrained(workspace, N, **OPTIONS)
    for method in (FINETUNE, PERTURB):
        fill_unlearned(workspace, method, N, **OPTIONS)
    return workspace


@pytest.fixture
def workspace(filled, tmp_path):
    """A copy of it that a test may change."""
    shutil.copytree(filled.folder, tmp_path / filled.name)
    return reopen(tmp_path / filled.name)


def times(pool):
    return {path.name: path.stat().st_mtime_ns for path in pool.folder.glob("model_*.npz")}


def test_a_setting_names_its_folder_by_content(filled, tmp_path):
    again = open_workspace(SETTING, tmp_path)
    assert again.name == filled.name
    other = Setting(**{**SETTING.__dict__, "train_seed": 1})
    assert open_workspace(other, tmp_path).name != filled.name
    assert reopen(filled.folder).setting == SETTING


def test_a_pool_grows_without_doing_the_first_models_again(workspace):
    pool = fill_retrained(workspace, N, **OPTIONS)
    before = times(pool)
    fill_retrained(workspace, N + 2, **OPTIONS)
    after = times(pool)
    assert len(after) == N + 2
    assert {name: after[name] for name in before} == before


def test_an_interrupted_pool_is_completed_to_the_same_logits(workspace):
    pool = fill_retrained(workspace, N, **OPTIONS)
    whole = pool.read(N)
    kept = times(pool)
    (pool.folder / "model_00001.npz").unlink()
    del kept["model_00001.npz"]
    fill_retrained(workspace, N, **OPTIONS)
    again = pool.read(N)
    assert all(np.array_equal(again[part], whole[part]) for part in ("forget", "retain", "test"))
    assert kept.items() <= times(pool).items()


def test_processes_and_inline_give_the_same_models(workspace):
    inline = fill_retrained(workspace, N, **OPTIONS).read(N)
    shutil.rmtree(workspace.folder / "retrained")
    parallel = fill_retrained(workspace, N, devices=["cpu"] * 2, progress=False).read(N)
    assert all(np.array_equal(inline[part], parallel[part]) for part in ("forget", "retain", "test"))


def test_the_pool_holds_the_checkpoints_that_the_kit_emits(filled, tmp_path):
    loaders = filled.loaders(FINETUNE.loader)
    result = emit(FINETUNE, filled.original(), loaders, out=tmp_path, n_checkpoints=2, progress=False)
    logits = unlearned_pool(filled, FINETUNE).read(2)
    net = filled.original()
    with zipfile.ZipFile(result.archive) as archive:
        for index, name in enumerate(archive.namelist()):
            with archive.open(name) as member:
                net.load_state_dict(torch.load(member, weights_only=True))
            emitted = logits_of(net, filled.evaluated())
            assert all(np.array_equal(emitted[part], logits[part][index]) for part in emitted)


def test_the_original_was_trained_on_everything_and_the_retrained_without_the_forget_set(filled):
    assert len(filled.splits.train) == 300
    assert len(filled.splits.retain) == 270
    assert filled.class_counts().sum() == 300
    logits = original_pool(filled).read(1)["forget"][0]
    assert np.array_equal(logits, logits_of(filled.original(), filled.evaluated())["forget"])


def test_the_table_has_the_method_and_the_two_rows_beside_it(filled):
    pools = {method.name: unlearned_pool(filled, method) for method in (FINETUNE, PERTURB)}
    rows = evaluate(read_samples(filled, pools, N))
    assert [row.name for row in rows] == ["finetune", "random_perturbation", DO_NOTHING, NULL]
    nothing, null = rows[2:]
    assert (nothing.score, nothing.mean_epsilon) == (0.0, 50.0)
    assert null.n_models == N
    lines = aligned(table_of(rows))
    assert len({len(line) for line in lines}) == 1
    assert len(markdown(table_of(rows))) == 6


def test_a_row_is_the_metric_of_the_pools(filled):
    samples = read_samples(filled, {"finetune": unlearned_pool(filled, FINETUNE)}, N)
    row = evaluate(samples)[0]
    pools = [unlearned_pool(filled, FINETUNE).read(N), fill_retrained(filled, N, **OPTIONS).read(N)]
    labels = {name: part.labels for name, part in filled.evaluated().items()}
    confidences = [logit_scaled_confidence(arrays["forget"], labels["forget"]) for arrays in pools]
    assert np.array_equal(row.epsilon, grid_epsilon(*confidences).epsilon)
    expected = row.forgetting_quality
    for part in ("retain", "test"):
        ours, theirs = ((arrays[part].argmax(-1) == labels[part]).mean() for arrays in pools)
        expected *= ours / theirs
    assert row.score == pytest.approx(expected)


def test_pools_of_two_settings_are_not_compared(filled, tmp_path):
    other = open_workspace(Setting(**{**SETTING.__dict__, "data_seed": 3}), tmp_path)
    fill_retrained(other, 2, **OPTIONS)
    pool = fill_unlearned(other, get_method("do_nothing"), 2, **OPTIONS)
    with pytest.raises(InputError, match="compare pools of one setting only"):
        read_samples(filled, {"do_nothing": pool}, 2)


@pytest.fixture
def slow(monkeypatch):
    """Every method is measured to take half a second a step, and to want 100 steps; of a limit nothing is used up."""
    monkeypatch.setitem(TimeBudget.__init__.__kwdefaults__, "clock", lambda: 0.0)
    monkeypatch.setattr(checkpoint, "measure_cost", lambda *_, **__: (StepCost(fixed_s=1.0, step_s=0.5), 100))


def test_a_time_limit_shortens_the_plan_once_for_all_models(workspace, slow):
    method = get_method("finetune", ["epochs=20"])
    pool = fill_unlearned(workspace, method, 2, limit="60s", **OPTIONS)
    plan = plans_of(pool)
    assert plan[0]["wanted"] == 100
    assert plan[0]["steps"] == int((58.8 / 1.05 / 2 - 1) / 0.5)
    assert pool.facts(1)["steps"] == plan[0]["steps"]
    fill_unlearned(workspace, method, 3, limit="60s", **OPTIONS)
    assert plans_of(pool) == plan, "all models of a pool share one plan"


def test_a_pool_under_a_limit_is_another_pool_and_says_so(workspace, slow):
    method = get_method("finetune", ["epochs=20"])
    short, shorter = (fill_unlearned(workspace, method, 2, limit=limit, **OPTIONS) for limit in ("60s", "40s"))
    whole = unlearned_pool(workspace, method)
    assert len({pool.folder for pool in (short, shorter, whole)}) == 3 and len(whole) == 0
    steps = plans_of(short)[0]["steps"]
    assert limit_notes({"mine": short, "whole": whole}) == [
        f"mine: under a limit of 60.0 s: {steps} of 100 wanted steps"
    ]
    rows = evaluate(read_samples(workspace, {"mine": short}, 2))
    assert facts_of(workspace, rows, {"mine": short})["limits"]["mine"]["wanted"] == 100
    assert names_of([short, shorter], ["a", "b"]) == ["finetune limit=60.0 s", "finetune limit=40.0 s"]
    long = fill_unlearned(workspace, FINETUNE, 1, limit="1h", **OPTIONS)
    plain = fill_unlearned(workspace, get_method("do_nothing"), 1, limit="1h", **OPTIONS)
    assert limit_notes({"finetune": plain}) == ["finetune: under a limit of 60 min 0 s: which shortened nothing"]
    assert limit_facts(long)["shortened"] is False


def test_an_edited_file_is_another_method(workspace, participant):
    path = participant("def unlearning(net, a, b, c): net.fc.bias.data += 1")
    before = unlearned_pool(workspace, get_method(path)).folder
    participant("def unlearning(net, a, b, c): net.fc.bias.data += 2")
    assert unlearned_pool(workspace, get_method(path)).folder != before


COMMON = ["--source", "digits", "--n-train", "300", "--forget", "random:30", "--architecture", "tinyconv"]
COMMON += ["--epochs", "1", "--quiet", "--slots", "1"]


def test_run_does_everything_and_a_second_method_reuses_the_retrained_models(tmp_path, capsys):
    options = [*COMMON, "--work-dir", str(tmp_path), "--n-models", "4", "--json"]
    assert main(["run", *options, "--limit", "60s"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in facts["rows"]] == ["finetune", DO_NOTHING, NULL]
    folder = tmp_path / facts["setting_hash"]
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("retrained/*.npz")}
    report = next(folder.glob("finetune-*/report.md")).read_text()
    assert "| finetune |" in report
    assert "too few to rank" in report
    assert main(["run", *options, "--method", "negative_gradient"]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("retrained/*.npz")} == before
    assert json.loads(capsys.readouterr().out)["rows"][0]["name"] == "negative_gradient"
    pools = [str(next(folder.glob(f"{name}-*"))) for name in ("finetune", "negative_gradient")]
    assert main(["score", *pools]) == 0
    text = capsys.readouterr().out
    assert text.index("finetune") < text.index("negative_gradient") < text.index(DO_NOTHING)


def test_the_steps_do_what_run_does(tmp_path, capsys):
    options = [*COMMON, "--work-dir", str(tmp_path)]
    assert main(["train", *options]) == 0
    assert main(["retrain", *options, "--n-models", "2"]) == 0
    assert main(["unlearn", *options, "--n-models", "2", "--json"]) == 0
    pool = json.loads(capsys.readouterr().out.splitlines()[-1])["pool"]
    assert main(["score", pool, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["n_models"] == 2


def test_confidences_from_anywhere_are_scored(tmp_path, capsys):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(16, 5)) for name in ("unlearned_confidence", "retrained_confidence")}
    np.savez(tmp_path / "c.npz", **arrays)
    assert main(["score", "--confidences", str(tmp_path / "c.npz"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    expected = grid_epsilon(arrays["unlearned_confidence"], arrays["retrained_confidence"]).epsilon
    assert facts["epsilon"] == expected.tolist()
    assert 0 < facts["forgetting_quality"] < 1


MIXTURE = "mixture(transpose=246, pseudo_label=266)"
SHORT = ["transpose.epochs=1", "pseudo_label.epochs=1", "pseudo_label.label_epochs=1"]


def test_a_mixture_fills_one_pool_that_grows_and_says_who_made_which_model(workspace):
    method = get_method(MIXTURE, SHORT)
    pool = fill_unlearned(workspace, method, 2, **OPTIONS)
    assert pool.folder.name.startswith("mixture-transpose-246-pseudo_label-266-")
    first = times(pool)
    pool = fill_points(workspace, [FINETUNE, method], N, **OPTIONS)[1]
    assert {name: times(pool)[name] for name in first} == first
    recipes = [pool.facts(index)["recipe"] for index in range(N)]
    assert recipes == ["pseudo_label", "transpose"] * 2
    for part in method.components:
        alone = fill_unlearned(workspace, part, N, **OPTIONS).read(N)["forget"]
        same = [np.array_equal(a, b) for a, b in zip(alone, pool.read(N)["forget"], strict=True)]
        assert same == [recipe == part.name for recipe in recipes]
    assert method_options(pool) == (MIXTURE, SHORT)
    samples = read_samples(workspace, {method.name: pool}, N)
    assert next(row.name for row in evaluate(samples)) == MIXTURE


def test_the_command_runs_a_mixture_under_a_limit_and_its_page_has_the_maps(workspace, capsys):
    options = ["run", "--setting", str(workspace.folder), "--method", MIXTURE, "--n-models", str(N), "--limit", "60s"]
    options += [word for setting in SHORT for word in ("--set", setting)] + ["--device", "cpu", "--slots", "1"]
    assert main([*options, "--quiet", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"][0]["name"] == MIXTURE
    page = Path(facts["page"]).read_text()
    assert "unlearned model is left out" not in page
    assert "mixture(transpose=246, pseudo_label=266)" in page


@pytest.mark.parametrize("n_forget", [1, 3])
def test_a_forget_set_of_a_few_images_has_a_page_of_what_can_be_said(n_forget, tmp_path, capsys):
    words = ["--source", "digits", "--n-train", "100", "--forget", f"random:{n_forget}", "--architecture", "tinyconv"]
    words += ["--epochs", "1", "--n-models", "8", "--slots", "1", "--quiet", "--work-dir", str(tmp_path)]
    assert main(["run", *words]) == 0
    out = capsys.readouterr().out
    assert ("a perfect unlearner scores" in out) is (n_forget > 1)
    (pool,) = tmp_path.rglob("finetune-*/pool.json")
    assert (pool.parent / "report.html").exists() and main(["score", str(pool.parent), "--quiet"]) == 0


def test_several_settings_are_trained_by_one_queue_to_the_same_models(tmp_path):
    settings = [replace(SETTING, data_seed=seed) for seed in (0, 1)]
    apart, together = (
        [open_workspace(setting, tmp_path / name) for setting in settings] for name in ("apart", "together")
    )
    for workspace in apart:
        fill_retrained(workspace, 2, devices=["cpu"], progress=False)
    fill_retrained(together[1], 1, devices=["cpu"], progress=False)  # that one has its original and a model already
    fill_settings(together, 2, devices=["cpu", "cpu"], progress=False)
    for one, other in zip(apart, together, strict=True):
        assert one.original_path.read_bytes() == other.original_path.read_bytes()
        for part, logits in retrained_pool(one).read(2).items():
            assert part == "seconds" or np.array_equal(logits, retrained_pool(other).read(2)[part])
