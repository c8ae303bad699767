"""All benchmarks in one record: what fits the limit is run, what fails is named, records elsewhere stay."""

import json

from benchmarks import record, run_all


def test_what_fits_is_run_and_what_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    chosen = {"bench_fuzz": (1, ["--n", "40"]), "bench_of_nothing": (1, []), "bench_metric": (1e9, [])}
    monkeypatch.setattr(run_all, "BENCHMARKS", chosen)
    run_all.main([run_all.__file__, "--limit", "5m"])
    (path,) = tmp_path.iterdir()
    assert path.name == f"machine_{run_all.machine_name()}.json"
    found = json.loads(path.read_text())["results"]
    assert found["left_out"] == ["metric"]
    assert found["benchmarks"]["fuzz"]["fuzz"]["mutants"] >= 40
    assert "No module named" in found["benchmarks"]["of_nothing"]["failed"]
