"""The Markdown table of a leaderboard, its record, and the benchmark of the methods' times."""

import json

import pytest

from benchmarks import bench_method_times, leaderboard_table
from benchmarks import record as record_module
from benchmarks.bench_dry_run import programs
from benchmarks.bench_emit import problem
from benchmarks.leaderboard_table import HEADER, main, table
from kit.competition import TensorLoader
from local_eval.leaderboard import KITS_OWN, entrants

EMPTY = {
    "place": None,
    "score": None,
    "score_low": None,
    "score_high": None,
    "share_of_null": None,
    "score_at_512": None,
    "retain_accuracy": None,
    "forget_accuracy": None,
    "test_accuracy": None,
    "seconds": None,
    "hours_on_t4": None,
    "fits_8h_on_t4": "unknown",
    "kaggle": None,
    "fault": "",
}
MIXTURE = "mixture(transpose=246, pseudo_label=266)"
ROWS = [
    {**EMPTY, "method": "retrain", "score": 0.15, "score_low": 0.14, "score_high": 0.16, "score_at_512": 0.16},
    {
        **EMPTY,
        "method": MIXTURE,
        "place": 1,
        "score": 0.1,
        "score_low": 0.08,
        "score_high": 0.12,
        "share_of_null": 0.667,
        "retain_accuracy": 0.981,
        "forget_accuracy": 0.9,
        "test_accuracy": 0.8,
        "seconds": 2.0,
        "hours_on_t4": 6.24,
        "fits_8h_on_t4": "yes",
        "kaggle": 0.0785,
    },
    {**EMPTY, "method": "do nothing", "score": 0.0, "score_low": 0.0, "score_high": 0.01},
    {**EMPTY, "method": "kookmin", "fault": "has no nn.Conv2d"},
]
FACTS = {
    "setting": {"source": "image-folder:/home/me/images", "n_train": 5},
    "command": "python -m local_eval leaderboard --work-dir /home/me",
    "page": "/home/me/leaderboard.html",
    "n_models": 48,
    "rows": ROWS,
}


def lines_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines()]


def test_the_table_has_a_line_a_row_and_joins_times_and_dry_runs():
    lines = lines_of("\n".join(table(ROWS, {MIXTURE: 3.456}, {MIXTURE: True, "kookmin": False})))
    assert lines[0] == list(HEADER)
    assert {len(line) for line in lines} == {len(HEADER)}
    dashes = ["-"] * 12
    assert lines[2] == ["*retrain*", "0.1500 [0.1400, 0.1600]", "-", "0.1600", *dashes[4:]]
    mixture = [f"`{MIXTURE}`", "0.1000 [0.0800, 0.1200]", "67%", "-", "98.1%", "90.0%", "80.0%", "2.0 s"]
    assert lines[3] == [*mixture, "3.46", "yes, 6.2 h", "passes", "0.0785"]
    assert lines[4][:2] == ["*do nothing*", "0.0000 [0.0000, 0.0100]"]
    assert lines[5] == ["`kookmin`", "failed", *dashes[2:10], "fails", "-"]


@pytest.fixture
def results(monkeypatch, tmp_path):
    """A folder of records in place of the committed ones."""
    for module in (record_module, leaderboard_table):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "benchmarks" / "results")
    monkeypatch.setattr(record_module, "ROOT", tmp_path)
    return tmp_path / "benchmarks" / "results"


def test_a_record_holds_the_numbers_and_no_path_of_the_machine_and_gives_the_same_table(
    tmp_path, results, monkeypatch, capsys
):
    monkeypatch.setattr(leaderboard_table, "__file__", str(tmp_path / "benchmarks" / "leaderboard_table.py"))
    (tmp_path / "board.json").write_text(json.dumps(FACTS))
    assert main([str(tmp_path / "board.json"), "--record", "tiny"]) == 0
    printed = capsys.readouterr().out
    kept = results / "leaderboard_tiny.json"
    assert "/home/me" not in kept.read_text()
    content = json.loads(kept.read_text())
    assert content["results"]["rows"][1]["score_high"] == 0.12
    assert content["results"]["setting"] == {"source": "image-folder:PATH", "n_train": 5}
    assert content["command"] == "python -m benchmarks.leaderboard_table FILE.json --record tiny"
    (results / "method_times.json").write_text(json.dumps({"results": {"methods": {MIXTURE: {"ratio": 2.5}}}}))
    (results / "dry_run.json").write_text(json.dumps({"results": {MIXTURE: {"exit_code": 0}}}))
    assert main([str(kept)]) == 0
    again = capsys.readouterr().out
    assert [line[:8] for line in lines_of(again)] == [line[:8] for line in lines_of(printed)]
    assert lines_of(again)[3][8:11] == ["2.50", "yes, 6.2 h", "passes"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [1]}', '{"rows": [{}]}', '{"results": 3}'])
def test_another_file_is_told_in_one_line(text, tmp_path, capsys):
    (tmp_path / "x.json").write_text(text)
    assert main([str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err
    assert "is no leaderboard" in error
    assert error.count("\n") == 1
    assert main([str(tmp_path / "nothing.json")]) == 2


def test_a_methods_time_is_measured_beside_the_starters_in_every_round(monkeypatch):
    model, loaders = problem("tinyconv", 40, TensorLoader)
    turns, cost = [], {"finetune": 2.0, "kookmin": 6.0, "transpose": 4.0, "pseudo_label": 8.0}

    def seconds_of(method, model, loaders, index):
        name = method.components[method.component_of(index)].name
        turns.append(name)
        return cost[name] * (10 if len(turns) > 6 else 1)  # slower between the second round's starter and kookmin

    monkeypatch.setattr(bench_method_times, "seconds_of", seconds_of)
    found = bench_method_times.timed(entrants("kookmin, mixture(transpose=1, pseudo_label=3)"), model, loaders, 3)
    first = ["finetune", "kookmin", "finetune"]
    assert turns[:3] == first
    assert sorted(turns[3:5]) == ["pseudo_label", "transpose"]
    assert found["kookmin"]["ratio"] == 3.0
    assert found["kookmin"]["ratios"] == [3.0, 30.0, 3.0]
    assert found["mixture(transpose=1, pseudo_label=3)"]["ratio"] == pytest.approx((4 + 3 * 8) / 4 / 2)


def test_a_method_that_does_not_work_on_the_net_says_so_and_the_others_are_timed(tmp_path):
    (tmp_path / "mine.py").write_text("def unlearning(net, a, b, c):\n    raise OSError('no')\n")
    model, loaders = problem("tinyconv", 40, TensorLoader)
    found = bench_method_times.timed(entrants(f"{tmp_path / 'mine.py'}, negative_gradient"), model, loaders, 1)
    assert "OSError: no" in found["mine"]["fault"]
    assert found["negative_gradient"]["ratio"] > 0


def test_a_submission_is_built_for_every_method_of_the_leaderboard(tmp_path):
    names = [MIXTURE, "fanchuan reverse_kl=0.85", "starter.py", "finetune, script"]
    found = programs(tmp_path, names)
    assert set(found) == set(names)
    assert all(path.exists() for path in found.values())
    assert '"reverse_kl": 0.85' in found["fanchuan reverse_kl=0.85"].read_text().replace("\\", "")
    assert set(programs(tmp_path, ["do_nothing"])) == {"do_nothing"}
    assert len(KITS_OWN) == len(entrants())
