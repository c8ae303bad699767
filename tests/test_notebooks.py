import nbformat
import pytest

from notebooks import build as builder
from notebooks.build import build, cells_of, differences, execute, main, scripts


def test_committed_notebooks_equal_their_scripts(capsys):
    assert main(["--check"]) == 0, capsys.readouterr().out
    assert scripts()


@pytest.mark.parametrize("script", scripts(), ids=lambda path: path.stem)
def test_committed_notebooks_were_executed_without_error(script):
    cells = [c for c in nbformat.read(script.with_suffix(".ipynb"), as_version=4).cells if c.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert "error" not in kinds
    assert "display_data" in kinds, "it shows pictures"


SCRIPT = "# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 2\n\n# %%\nprint(x + 1)\n"


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "FOLDER", tmp_path)
    (tmp_path / "small.py").write_text(SCRIPT)
    return tmp_path / "small.py"


def test_a_script_becomes_cells():
    assert cells_of(SCRIPT) == [("markdown", "# Title\n\nText."), ("code", "x = 2"), ("code", "print(x + 1)")]


def test_a_built_notebook_is_valid_runs_and_is_the_same_each_time(script):
    notebook = build(script)
    nbformat.validate(notebook)
    assert build(script) == notebook
    assert execute(notebook).cells[2].outputs[0].text == "3\n"


def test_drift_is_told(script, capsys):
    assert main(["--check"]) == 1
    assert "small.ipynb: is missing" in capsys.readouterr().out
    notebook = build(script)
    nbformat.write(notebook, script.with_suffix(".ipynb"))
    assert differences(script) is None
    notebook.cells[1].source = "x = 3"
    nbformat.write(notebook, script.with_suffix(".ipynb"))
    assert "cell 1 differs from small.py" in differences(script)
