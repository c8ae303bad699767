"""All benchmarks in one record: what fits the limit is run, what fails is named, records elsewhere stay."""

import json

import pytest

from benchmarks import record, run_all


@pytest.mark.parametrize("n", [200, pytest.param(20_000, marks=pytest.mark.slow)])
def test_what_fits_is_run_and_what_fails_is_named(n, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    chosen = {"bench_fuzz": (1, ["--n", str(n)]), "bench_of_nothing": (1, []), "bench_metric": (1e9, [])}
    monkeypatch.setattr(run_all, "BENCHMARKS", chosen)
    run_all.main([run_all.__file__, "--limit", "5m"])
    (path,) = tmp_path.iterdir()
    assert path.name == f"machine_{run_all.machine_name()}.json"
    found = json.loads(path.read_text())["results"]
    assert found["left_out"] == ["metric"]
    fuzz = found["benchmarks"]["fuzz"]["fuzz"]
    assert fuzz["mutants"] == n and fuzz["exceptions"] == fuzz["hangs"] == 0 and not fuzz["crashes_of_the_interpreter"]
    assert "No module named" in found["benchmarks"]["of_nothing"]["failed"]
