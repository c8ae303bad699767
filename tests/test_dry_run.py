"""Dry runs of whole programs: what is right passes, what is wrong is caught with its line, nothing is left behind."""

import tempfile
import time
from pathlib import Path

import pytest

from local_eval.dry_run.judge import dry_run, lines_of
from local_eval.dry_run.program import read_program
from notebooks.starter import STARTER, write_program
from tests.dry_run_programs import BAD, FAULTS, STYLES, SURVIVED, UNCOUNTED
from tests.interrupting import interrupt_once_begun

N = 2
ISOLATION = ["as the system allows", "hooks alone"]


def some_slow(names, quick):
    """Names as parameters: those of whole programs take minutes together, so that all but one are marked slow."""
    return [name if name == quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    """Write cells as a program and execute it; nothing may be left of it."""
    temporary = Path(tempfile.mkdtemp())
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def execute(cells, name="program.ipynb", n_models=N, **options):
        program = read_program(write_program(tmp_path / name, cells))
        result = dry_run(
            program, tiny, n_models, timeout_s=options.pop("timeout_s", 600), devices=["cpu"], progress=False, **options
        )
        assert list(temporary.iterdir()) == []
        return result

    yield execute
    temporary.rmdir()


def failed(result):
    return {check.name: check.found for check in result.checks if check.ok is False}


def undecided(result):
    return [check.name for check in result.checks if check.ok is None]


def same_texts(found, texts):
    return all(text in found for text in texts)


def check_fault(result, name, texts):
    found = failed(result)
    assert name in found, lines_of(result)
    assert same_texts(found[name], texts), found[name]
    assert all(check.remedy for check in result.checks if check.ok is False)
    assert result.exit_code == 1


# -- what is right ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("namespaces", [pytest.param(None, marks=pytest.mark.slow), False], ids=ISOLATION)
def test_the_starter_passes(run, namespaces):
    result = run(STARTER, "starter.ipynb", namespaces=namespaces)
    assert failed(result) == {}
    assert result.exit_code == 0
    assert result.kaggles_word is None
    assert lines_of(result)[-1] == "Kaggle would take it"
    assert [(change.number, change.line) for change in result.changes] == [(4, 8), (4, 15)]
    assert "2 instead of 512" in lines_of(result)[0]


@pytest.mark.slow
def test_a_script_passes(run):
    result = run(STARTER, "starter.py", namespaces=False)
    assert failed(result) == {}


@pytest.mark.slow
@pytest.mark.parametrize("namespaces", [None, False], ids=ISOLATION)
@pytest.mark.parametrize("name", STYLES)
def test_no_style_is_a_fault(run, name, namespaces):
    result = run(STYLES[name], namespaces=namespaces)
    assert failed(result) == {}, lines_of(result)


@pytest.mark.parametrize("name", some_slow(UNCOUNTED, quick="a text"))
def test_a_number_that_the_text_does_not_tell_is_no_fault(run, name):
    result = run(UNCOUNTED[name])
    assert failed(result) == {}, lines_of(result)
    assert (undecided(result), result.exit_code) == (["run"], 1)
    assert lines_of(result)[-1] == "no check failed, but not decided: run"
    found = {check.name: check.found for check in result.checks}
    assert "stopped after" in found["run"] and "not written as 512" in found["run"]
    assert f"{N} checkpoints" in found["members"], found


def test_ctrl_c_ends_the_program_and_leaves_nothing(run):
    watcher, start = interrupt_once_begun(Path(tempfile.gettempdir())), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(["open('/kaggle/working/begun', 'w').close()\nimport time\ntime.sleep(600)"])  # no verdict, no fault
    watcher.join()
    assert time.monotonic() < start + 300


# -- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", some_slow(FAULTS, quick="a fixed seed inside the function"))
def test_each_fault_is_caught_with_its_line(run, name):
    cells, check, texts = FAULTS[name]
    check_fault(run(cells), check, texts)


@pytest.mark.parametrize("name", some_slow(SURVIVED, quick="use of the network"))
def test_what_a_program_goes_on_without_is_told_and_no_fault(run, name):
    cells, check, texts = SURVIVED[name]
    result = run(cells)
    assert (failed(result), result.exit_code) == ({}, 0), lines_of(result)
    (told,) = (one.found for one in result.checks if one.name == check)
    assert same_texts(told, texts) and told.endswith(("goes on without it", "does not mind")), told


@pytest.mark.slow
@pytest.mark.parametrize("namespaces", [None, False], ids=ISOLATION)
@pytest.mark.parametrize("name", BAD)
def test_bad_programs_are_survived_and_told(run, name, namespaces):
    cells, check, texts, output = BAD[name]
    result = run(cells, namespaces=namespaces, timeout_s=60 if name == "a hang" else 600)
    check_fault(result, check, texts)
    assert result.unusable
    assert output in "\n".join(lines_of(result))
