"""The leaderboard: its numbers are those of the assessments, what is missing is made, what fails has a row."""

import csv
import json
import math
import os
import shutil
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from benchmarks.validity.points import METHODS, known_points
from kit.errors import InputError
from kit.methods import get_method, method_names
from local_eval import evaluate as evaluate_module
from local_eval import leaderboard as board_module
from local_eval.__main__ import main
from local_eval.assess import assess
from local_eval.audit.null import null_quality
from local_eval.audit.predict import predict_quality
from local_eval.dry_run.projection import EPOCH_S
from local_eval.evaluate import DO_NOTHING, NULL, evaluate, read_samples
from local_eval.leaderboard import Entry, entrants, leaderboard
from local_eval.report import kaggle
from local_eval.report.leaderboard import COLUMNS, board_notes, board_table, cells
from local_eval.retrained import retrained_pool
from local_eval.setting import reopen
from local_eval.unlearned import unlearned_pool
from tests.browser import ON_DESK, ON_PHONE, TEXTS_IN_THE_WAY, TOO_WIDE, show

assess_module = import_module("local_eval.assess")  # the package's own name is the public function
N = 8
QUICK = partial(predict_quality, n_simulated=40, n_refits=3)  # a prediction takes most of an assessment's time
MIXTURE = "mixture(finetune=1, random_perturbation=3)"
NAMES = ["finetune", "finetune lr=0.05", MIXTURE]
LIST = ", ".join(NAMES)
FAILING = "def unlearning(net, a, b, c):\n    raise ZeroDivisionError('nothing <b>to divide</b>')\n"
SETTING = ["--source", "digits", "--n-train", "300", "--forget", "random:30", "--architecture", "tinyconv"]
SETTING += ["--epochs", "1", "--n-retain-sample", "100"]
COMMON = ["--n-models", str(N), "--quiet", "--slots", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The command once: its exit code, its facts, the folder of the setting, the file that fails."""
    root = tmp_path_factory.mktemp("board")
    (root / "mine.py").write_text(FAILING)
    words = ["leaderboard", *SETTING, *COMMON, "--work-dir", str(root / "runs"), "--csv", str(root / "deep/board.csv")]
    words += ["--methods", ", ".join([*NAMES[:2], str(root / "mine.py"), NAMES[2]]), "--json"]
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assess_module, "predict_quality", QUICK)
        patch.setattr("builtins.print", lambda *texts, **_: told.extend(texts))
        code = main(words)
    (facts,) = (json.loads(text) for text in told)
    return code, facts, next((root / "runs").glob("*/setting.json")).parent, root / "mine.py"


@pytest.fixture
def unpredicted(monkeypatch):
    def refuse(*_, **__):
        raise InputError("nothing is predicted here")

    monkeypatch.setattr(assess_module, "predict_quality", refuse)


@pytest.fixture
def folder(made, tmp_path, unpredicted):
    """A copy of the setting that a test may change."""
    shutil.copytree(made[2], tmp_path / made[2].name)
    return tmp_path / made[2].name


def again(folder, *options, methods=LIST):
    return main(["leaderboard", "--setting", str(folder), *COMMON, "--methods", methods, *options])


def rows_of(facts):
    return {row["method"]: row for row in facts["rows"]}


def test_the_numbers_are_those_of_the_assessments(made, monkeypatch):
    monkeypatch.setattr(assess_module, "predict_quality", QUICK)
    workspace, rows = reopen(made[2]), rows_of(made[1])
    pools = {entrant.name: unlearned_pool(workspace, entrant.method) for entrant in entrants(LIST)}
    samples = read_samples(workspace, pools, N)
    assessed, _ = assess(samples)
    scored = {row.name: row for row in evaluate(samples)}
    assert set(rows) == {*NAMES, "mine", DO_NOTHING, "retrain"}
    for assessment in assessed:
        form, row, plain = assessment.forms["grid"], rows[assessment.name], scored[assessment.name]
        for name, interval in (("score", form.score), ("share_of_null", form.share), ("score_at_512", form.predicted)):
            ends = (interval.value, interval.low, interval.high) if interval else (None,) * 3
            assert (row[name], row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(ends)
        assert row["unpredicted"] == form.unpredicted
        assert bool(row["unpredicted"]) == (row["score_at_512"] is None)
        assert row["score"] == pytest.approx(plain.score)
        parts = ("retain_accuracy", "forget_accuracy", "test_accuracy")
        assert [row[part] for part in parts] == pytest.approx([getattr(plain, part) for part in parts])
        assert row["seconds"] == (pytest.approx(plain.seconds) if assessment.name != DO_NOTHING else None)
    assert rows["retrain"]["score"] == pytest.approx(scored[NULL].score)
    null = null_quality(samples.retrained.confidence, 512)
    assert rows["retrain"]["score_at_512"] == pytest.approx(null.quality.value)


def test_methods_stand_by_score_between_the_null_and_what_failed(made):
    rows = made[1]["rows"]
    assert (rows[0]["method"], rows[-1]["method"]) == ("retrain", "mine")
    scores = [row["score"] for row in rows[1:-1]]
    assert scores == sorted(scores, reverse=True)
    assert [row["place"] for row in rows if row["method"] in NAMES] == [1, 2, 3]
    assert {row["place"] for row in rows if row["method"] not in NAMES} == {None}


def test_a_method_that_fails_has_a_row_that_says_why_and_stops_nothing(made):
    code, facts, _, path = made
    row = rows_of(facts)["mine"]
    assert code == 1
    assert row["fault"].startswith("mine: checkpoint 0 failed: ZeroDivisionError: nothing <b>to divide</b> (")
    assert row["score"] is None
    assert all(rows_of(facts)[name]["score"] is not None for name in NAMES)
    page = Path(facts["page"]).read_text()
    assert "nothing &lt;b&gt;to divide&lt;/b&gt;" in page
    assert "<b>to" not in page
    assert path.name in facts["command"]


def test_the_csv_holds_the_same(made):
    with (made[3].parent / "deep/board.csv").open(newline="") as lines:
        found = list(csv.DictReader(lines))
    assert [row["method"] for row in found] == [row["method"] for row in made[1]["rows"]]
    for ours, theirs in zip(found, made[1]["rows"], strict=True):
        for name in ("score", "score_low", "share_of_null", "seconds", "hours_on_t4", "kaggle", "place"):
            assert ours[name] == ("" if theirs[name] is None else str(theirs[name]))
        assert ours["fault"] == theirs["fault"]
    assert "lr=0.05" in next(row for row in found if row["method"] == "finetune lr=0.05")["settings"].split("; ")


def test_what_is_there_is_kept_and_what_is_missing_is_made(folder, capsys):
    workspace = reopen(folder)
    pools = [unlearned_pool(workspace, entrant.method) for entrant in entrants(LIST)]
    files = sorted(path for pool in [*pools, retrained_pool(workspace)] for path in pool.folder.glob("model_*.npz"))
    assert len(files) == 4 * N
    gone = [files[3], files[N + 2], files[3 * N]]
    before = {path: path.stat().st_mtime_ns for path in files if path not in gone}
    logits = [np.load(path)["forget"] for path in gone]
    for path in gone:
        path.unlink()
    assert again(folder) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for path, values in zip(gone, logits, strict=True):
        assert np.array_equal(np.load(path)["forget"], values)
    out = capsys.readouterr().out
    assert [line.split("  ")[0] for line in out.splitlines()[2:4]] != ["", ""]
    assert f"report: {folder / 'leaderboard.html'}" in out


def test_it_goes_on_after_an_interruption(folder, monkeypatch, capsys):
    workspace, plain = reopen(folder), board_module.fill_points
    for entrant in entrants(LIST):
        shutil.rmtree(unlearned_pool(workspace, entrant.method).folder)
    seen = []

    def interrupted(workspace, methods, *args, **options):
        seen.append(methods[0].name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return plain(workspace, methods, *args, **options)

    monkeypatch.setattr(board_module, "fill_points", interrupted)
    assert again(folder) == 130
    assert "the same command continues" in capsys.readouterr().err
    first = unlearned_pool(workspace, get_method("finetune")).folder
    times = {path: path.stat().st_mtime_ns for path in first.glob("model_*.npz")}
    assert len(times) == N
    assert again(folder) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_method_that_is_mended_gets_its_row(folder, made, tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(FAILING)
    assert again(folder, methods=f"finetune, {mine}") == 1
    assert "mine failed: mine: checkpoint 0 failed: ZeroDivisionError" in capsys.readouterr().out
    mine.write_text(
        "import torch\ndef unlearning(net, a, b, c):\n    net.fc.bias.data.add_(torch.randn(10))\n    return net\n"
    )
    assert again(folder, methods=f"finetune, {mine}") == 0
    assert "failed" not in capsys.readouterr().out


def test_a_method_that_breaks_the_model_and_a_damaged_file_are_rows_too(folder, tmp_path, capsys):
    broken = tmp_path / "broken.py"
    broken.write_text("def unlearning(net, a, b, c):\n    net.fc.bias.data.fill_(float('nan'))\n")
    pool = unlearned_pool(reopen(folder), get_method("finetune", ["lr=0.05"]))
    (pool.folder / "model_00003.npz").write_bytes(b"no archive")
    assert again(folder, "--json", methods=f"{NAMES[0]}, {broken}, {NAMES[1]}") == 1
    rows = rows_of(json.loads(capsys.readouterr().out))
    assert "no model in 3 attempts" in rows["broken"]["fault"]
    assert "model_00003.npz: is broken" in rows["finetune lr=0.05"]["fault"]
    assert rows["finetune"]["fault"] == ""


def test_the_null_is_computed_once(made, monkeypatch, unpredicted):
    calls = []

    def counted(*args, **options):
        calls.append(args[1])
        return null_quality(*args, **options)

    monkeypatch.setattr(assess_module, "null_quality", counted)
    monkeypatch.setattr(evaluate_module, "null_quality", counted)
    leaderboard(reopen(made[2]), entrants(LIST), N)
    assert sorted(calls) == [N, 512]


def test_hours_on_a_t4_are_epochs_of_the_starters_fine_tuning(made):
    rows = rows_of(made[1])
    starter = rows["finetune"]
    assert starter["hours_on_t4"] == pytest.approx(512 * EPOCH_S["T4"] / 3600)
    assert starter["fits_8h_on_t4"] == "yes"
    for name in NAMES:
        times = rows[name]["seconds"] / starter["seconds"]
        assert rows[name]["hours_on_t4"] == pytest.approx(times * starter["hours_on_t4"])
    assert (Entry("a", {}, hours_on_t4=8.01).fits_t4, Entry("a", {}, hours_on_t4=7.99).fits_t4) == ("no", "yes")
    assert rows["mine"]["fits_8h_on_t4"] == "unknown"


def test_hours_are_unknown_without_the_starter(folder):
    workspace = reopen(folder)
    shutil.rmtree(unlearned_pool(workspace, get_method("finetune")).folder)
    board = leaderboard(workspace, entrants(NAMES[2]), N)
    (entry,) = board.entries
    assert any(
        note.startswith(f"no score at N = 512 for {MIXTURE}, do nothing: nothing") for note in board_notes(board)
    )
    assert (entry.hours_on_t4, entry.fits_t4) == (None, "unknown")
    assert "unknown" in board_table(board)[2]
    assert any("no models of finetune" in note for note in board_notes(board))


def test_every_cell_of_an_entry_without_anything_is_a_dash():
    entry = Entry("mine", {}, fault="it is broken")
    texts = [cell.text for cell in cells(entry)]
    assert len(texts) == len(COLUMNS)
    assert texts == ["mine", "failed", *["-"] * 9]
    assert [cell.value for cell in cells(replace(entry, kaggle=0.1))][1:] == [None] * 9 + [0.1]


# -- which methods ----------------------------------------------------------------------------------------------------


def test_all_methods_of_the_kit_are_on_the_board_unless_others_are_named():
    names = [entrant.name for entrant in entrants()]
    assert set(names) == {*method_names(), "fanchuan reverse_kl=0.85", "mixture(transpose=246, pseudo_label=266)"} - {
        "do_nothing"
    }
    assert len(names) == len(set(names))


def test_kaggles_scores_are_those_of_the_table_of_sources():
    known = {point.name: point.kaggle for point in known_points() if point.kind == "method"}
    known["finetune"] = next(point.kaggle for point in known_points() if point.name == "0.001, 64, 1")
    assert set(kaggle.BY_METHOD) == set(known) == {" ".join([spec, *s]) for spec, s in METHODS.values()} | {"finetune"}
    assert all(math.isclose(kaggle.BY_METHOD[name], score, abs_tol=1e-5) for name, score in known.items())
    found = {entrant.name: entrant.kaggle for entrant in entrants()}
    assert {name: score for name, score in found.items() if score is not None} == kaggle.BY_METHOD


def test_other_settings_have_no_score_of_kaggles_and_defaults_written_out_have():
    found = entrants("fanchuan rounds=8, fanchuan rounds=2")
    assert [entrant.kaggle for entrant in found] == [kaggle.BY_METHOD["fanchuan"], None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("finetune, kookmim", "method 'kookmim': unknown: did you mean kookmin"),
        ("finetune,, ssd", "an empty name"),
        ("", "an empty name"),
        ("finetune, ssd, finetune lr=0.001", "finetune lr=0.001 is finetune: give each method once"),
        ("finetune lr=fast", "expected float"),
        ("finetune speed=1", "has no hyper-parameter 'speed'"),
        ("mixture(finetune=1, ssd=0)", "ssd has the weight 0"),
    ],
)
def test_a_mistake_in_the_list_is_told_before_anything_is_made(text, message, tmp_path):
    with pytest.raises(InputError, match=message):
        entrants(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n-models", "7"], "--n-models 7: the score compares distributions and needs at least 8"),
        (["--csv", "{}"], "is a folder: give the name of a file in it"),
        (["--csv", f"{{}}/{'long' * 61}.csv"], "the name is too long: choose one of at most 240 bytes"),
        (["--out", "{}/board", "--csv", "{0}/a/../board"], "is given for two files: give each a name of its own"),
        (["--csv", "{}/pipe"], "is a device or a pipe: give the name of a file"),
        (["--out", "/dev/null/board.html"], "cannot be written"),
        (["--setting", "{}/nothing"], "is no folder of a setting"),
    ],
)
def test_a_mistake_in_the_options_is_one_line(options, message, made, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    code = again(made[2], *(option.format(tmp_path) for option in options))
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_the_seed_of_the_runs_may_be_any_whole_number_as_in_the_other_commands(made, unpredicted, tmp_path, capsys):
    page = ["--out", str(tmp_path / "board.html")]
    assert again(made[2], "--seed", "-1", "--json", *page, methods="finetune") == 0
    assert json.loads(capsys.readouterr().out)["seed"] == -1


def test_a_folder_whose_name_is_too_long_is_one_line(tmp_path, capsys):
    words = ["leaderboard", *SETTING, *COMMON, "--methods", "finetune"]
    assert main([*words, "--work-dir", str(tmp_path / ("long" * 70))]) == 2
    error = capsys.readouterr().err
    assert "File name too long" in error
    assert error.count("\n") == 1


# -- the page ---------------------------------------------------------------------------------------------------------

FIRST_COLUMN = "return [...document.querySelectorAll('.board tbody tr')].map(row => row.cells[0].innerText)"


def test_a_click_on_a_column_sorts_and_what_holds_nothing_comes_last(made, browser):
    show(browser, Path(made[1]["page"]), ON_DESK)
    columns = browser.find_elements("css selector", ".board th button")
    assert len(columns) == len(COLUMNS)
    rows = {row["method"]: row for row in made[1]["rows"]}

    def order():
        names = browser.execute_script(FIRST_COLUMN)
        return [name.split(" ", 1)[1] if name[0].isdigit() else name for name in names]

    for key, column in (("retain_accuracy", 5), ("seconds", 8)):
        have = sorted((name for name in NAMES if rows[name][key] is not None), key=lambda name: rows[name][key])
        columns[column].click()
        assert [name for name in order() if name in NAMES] == have[::-1]
        assert order()[-1] == "mine"
        columns[column].click()
        assert [name for name in order() if name in NAMES] == have
        assert order()[-1] == "mine"
    columns[0].click()
    assert [name for name in order() if name in NAMES] == sorted(NAMES)
    arrows = "return [...document.querySelectorAll('.board th')].map(head => head.getAttribute('aria-sort'))"
    assert browser.execute_script(arrows) == ["ascending"] + [None] * (len(COLUMNS) - 1)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [ON_DESK, ON_PHONE])
def test_a_browser_shows_it_whole(made, browser, width, theme):
    browser.get_log("browser")
    show(browser, Path(made[1]["page"]), width, theme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(TOO_WIDE) == []
    assert browser.execute_script(TEXTS_IN_THE_WAY) == []
    assert browser.get_log("browser") == []
