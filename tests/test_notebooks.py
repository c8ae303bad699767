"""The builder: notebooks from their sources, drift, and a method in each of its forms. What the cells do when they
run: test_notebook_cells.py."""

import ast
import json

import nbformat
import pytest
from nbformat.v4 import new_output

from kit.methods import method_names
from notebooks import build as builder
from notebooks.build import Kept, build, differences, execute, kept, main, settled
from notebooks.percent import cells_of, notebook_of, script_of

KEPT = kept()


# -- what is committed ------------------------------------------------------------------------------------------------


def test_committed_notebooks_equal_a_rebuild(capsys):
    assert main(["--check"]) == 0, capsys.readouterr().out
    assert len(KEPT) >= 5


@pytest.mark.parametrize("item", KEPT, ids=lambda item: item.path.stem)
def test_committed_notebooks_were_executed_without_error(item):
    cells = [c for c in nbformat.read(item.path, as_version=4).cells if c.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert "error" not in kinds
    if item.metadata is None:
        assert "display_data" in kinds, "it shows pictures"
    else:
        text = "".join(output.get("text", "") for output in cells[-1].outputs)
        assert text.rstrip().splitlines()[-1].startswith("done: 8 checkpoints")


@pytest.mark.parametrize("item", KEPT, ids=lambda item: item.path.stem)
def test_committed_notebooks_name_no_folder_of_the_machine_they_ran_on(item):
    text = item.path.read_text().replace("kaggle/tmp/", "")
    assert not [folder for folder in ("/work/", "/home/", "/root/", "/tmp/", "image-folder:/") if folder in text]


# -- building from a script -------------------------------------------------------------------------------------------

SCRIPT = "# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 2\n\n# %%\nprint(x + 1)\n"


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A folder of notebooks with one script; no submissions."""
    monkeypatch.setattr(builder, "FOLDER", tmp_path)
    monkeypatch.setattr(builder, "SUBMISSIONS", {})
    (tmp_path / "small.py").write_text(SCRIPT)
    return tmp_path / "small.py"


def test_a_script_becomes_cells_and_cells_a_script():
    cells = [("markdown", "# Title\n\nText."), ("code", "x = 2"), ("code", "print(x + 1)")]
    assert cells_of(SCRIPT) == cells
    assert script_of(cells) == SCRIPT


def test_a_built_notebook_is_valid_runs_and_is_the_same_each_time(script):
    notebook = notebook_of(cells_of(SCRIPT))
    nbformat.validate(notebook)
    assert notebook_of(cells_of(SCRIPT)) == notebook
    assert execute(notebook).cells[2].outputs[0].text == "3\n"


def test_drift_is_told_and_sources_are_renewed_without_running(script, capsys):
    path = script.with_suffix(".ipynb")
    assert main(["--check"]) == 1
    assert "small.ipynb: is missing" in capsys.readouterr().out
    assert main(["--sources"]) == 2
    assert "build it without --sources" in capsys.readouterr().err

    notebook = notebook_of(cells_of(SCRIPT))
    notebook.cells[2].outputs = [new_output("stream", text="3\n")]
    notebook.cells[2].execution_count = 2
    nbformat.write(notebook, path)
    assert main(["--check"]) == 0
    before = path.stat().st_mtime_ns
    assert main(["--sources"]) == 0
    assert "equal small.ipynb" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == before

    script.write_text(SCRIPT.replace("x = 2", "x = 5"))
    assert main(["--check"]) == 1
    assert "small.ipynb: cell 1 differs from a rebuild" in capsys.readouterr().out
    assert main(["--sources", "small"]) == 0
    cells = nbformat.read(path, as_version=4).cells
    assert (cells[1].source, cells[2].outputs[0].text) == ("x = 5", "3\n"), "outputs stay"
    assert main(["--check"]) == 0

    script.write_text(SCRIPT + "\n# %%\nprint(1)\n")
    assert main(["--sources"]) == 2
    assert "execute it anew" in capsys.readouterr().err


def test_a_missing_or_changed_description_for_the_upload_is_drift(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "FOLDER", tmp_path)
    item = Kept(tmp_path / "a.ipynb", [("code", "x = 1")], metadata="{}\n")
    nbformat.write(notebook_of(item.cells), item.path)
    assert differences(item) == "kernel-metadata.json: differs from a rebuild"
    assert build(item, sources_only=True)
    assert differences(item) is None
    assert (tmp_path / "kernel-metadata.json").read_text() == "{}\n"


def test_a_failing_notebook_leaves_the_old_one(script):
    path = script.with_suffix(".ipynb")
    path.write_text("old")
    script.write_text("# %%\nraise ValueError('no')\n")
    with pytest.raises(Exception, match="no"):
        build(builder.kept()[0])
    assert path.read_text() == "old"
    assert sorted(p.name for p in path.parent.iterdir()) == ["small.ipynb", "small.py"]


def test_pieces_of_a_stream_are_joined_and_of_a_progress_bar_the_last_state_is_kept():
    notebook = notebook_of([("code", "")])
    pieces = [("stderr", "a\n\r  0%|  |"), ("stderr", "\r100%|##|\nlast"), ("stdout", "b\n"), ("stderr", "\n")]
    notebook.cells[0].outputs = [new_output("stream", name=name, text=text) for name, text in pieces]
    found = [(output.name, output.text) for output in settled(notebook).cells[0].outputs]
    assert found == [("stderr", "a\n100%|##|\nlast"), ("stdout", "b\n")]


# -- a method in its forms --------------------------------------------------------------------------------------------


def built(tmp_path, *options, method="finetune", suffix=".ipynb"):
    out = tmp_path / "folder" / f"mine{suffix}"
    assert main(["--method", method, "--out", str(out), *options]) == 0
    return out


def code_of(path):
    return [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def test_a_submission_has_three_cells_of_code_and_the_method_alone_in_the_second(tmp_path, capsys):
    path = built(tmp_path)
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [c.cell_type for c in notebook.cells] == ["markdown", "code"] * 3
    kit, method, run = code_of(path)
    assert kit.startswith("# Unlearning Submission Kit ")
    assert "sha256" in kit.splitlines()[1]
    assert [n.name for n in ast.parse(method).body if isinstance(n, ast.FunctionDef)] == ["unlearn"]
    assert run.rstrip().endswith('submit(unlearn, "finetune", **SETTINGS)')
    assert "from kit" not in kit + method + run
    assert f"python -m local_eval dry-run {path}" in capsys.readouterr().out


def test_the_kit_cell_of_fine_tuning_is_shorter_than_700_lines(tmp_path):
    assert len(code_of(built(tmp_path))[0].splitlines()) < 700


@pytest.mark.parametrize("method", method_names())
def test_every_cell_is_python_3_10(method, tmp_path):
    for source in code_of(built(tmp_path, method=method)):
        ast.parse(source, feature_version=(3, 10))


def test_settings_become_defaults_of_the_method_cell(tmp_path):
    method = code_of(built(tmp_path, "--set", "lr=0.125", "--set", "epochs=3"))[1]
    assert "lr: float = 0.125," in method
    assert "epochs: float = 3.0," in method
    assert "momentum: float = 0.9," in method


def test_the_description_for_the_upload(tmp_path):
    path = built(tmp_path, "--user", "me", method="l2_penalty")
    facts = json.loads(path.with_name("kernel-metadata.json").read_text())
    assert facts["id"] == "me/unlearning-l2-penalty"
    assert facts["title"].replace(" ", "-") == facts["id"].partition("/")[2], "Kaggle makes the address of the title"
    assert facts["code_file"] == path.name
    assert (facts["kernel_type"], facts["language"]) == ("notebook", "python")
    assert (facts["enable_gpu"], facts["enable_internet"]) == (True, False)
    assert facts["competition_sources"] == ["neurips-2023-machine-unlearning"]


def test_the_form_with_files_writes_kit_and_method_where_processes_import_them(tmp_path):
    kit, method, run = code_of(built(tmp_path, "--form", "writefile"))
    assert kit.startswith("%%writefile unlearning_kit.py\n")
    assert method.startswith("%%writefile unlearning_method.py\n")
    assert "\nfrom unlearning_kit import " in method
    assert "from unlearning_method import unlearn" in run
    for source in (kit.partition("\n")[2], method.partition("\n")[2], run):
        ast.parse(source, feature_version=(3, 10))


def test_the_form_of_a_script_has_the_same_cells(tmp_path):
    script = built(tmp_path, "--form", "script", suffix=".py")
    assert json.loads(script.with_name("kernel-metadata.json").read_text())["kernel_type"] == "script"
    ast.parse(script.read_text(), feature_version=(3, 10))
    cells = [source.strip() for kind, source in cells_of(script.read_text()) if kind == "code"]
    assert cells == [source.strip() for source in code_of(built(tmp_path))]


def test_the_form_of_a_cell_is_printed_and_only_defines(capsys):
    assert main(["--method", "finetune", "--form", "cell"]) == 0
    text = capsys.readouterr().out
    kinds = {type(node) for node in ast.parse(text, feature_version=(3, 10)).body}
    assert kinds <= {ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Expr}
    assert "#     unlearn(net, retain_loader, forget_loader, val_loader, seed=checkpoint_seed(0, i))" in text


MINE = '''"""Mine."""
import torch
from kit.training import fine_tune

SCALE = 0.5


def unlearning(net, retain_loader, forget_loader, val_loader, lr=0.01):
    return fine_tune(net, retain_loader, 2, lr=SCALE * lr)


if __name__ == "__main__":
    print("not on Kaggle")
'''


def test_a_participants_file_becomes_a_submission(tmp_path, participant):
    kit, method, run = code_of(built(tmp_path, "--set", "lr=0.25", method=participant(MINE)))
    assert "def fine_tune(" in kit
    assert "SCALE = 0.5" in method
    assert "lr=0.25" in method
    assert "from kit" not in method
    assert "not on Kaggle" not in method
    assert 'submit(unlearning, "mine", **SETTINGS)' in run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "nonsense"], "method 'nonsense': unknown"),
        (["--method", "finetune", "--set", "nonsense=1"], "no hyper-parameter 'nonsense'"),
        (["--method", "finetune", "--out", "x.py"], "a notebook is a .ipynb file"),
        (["--method", "no/such/file.py"], "no such file"),
        (["--method", "finetune", "--out", "/proc/no/x.ipynb"], "cannot be written"),
        (["nonsense"], "no such notebook here"),
        (["--out", "x.ipynb"], "goes with --method"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINE.replace("SCALE", "fine_tune", 1), "fine_tune"),  # a name of the kit that the file binds anew
        (MINE.replace("import torch", "import beside"), "imports beside.py, which does not travel"),
        (MINE.replace("from kit.training import fine_tune", "import kit.training"), "write from kit.training import"),
        (MINE.replace("import fine_tune", "import fine_tune as tune"), "use one name"),
    ],
)
def test_files_that_cannot_travel_are_refused(text, message, tmp_path, participant, capsys):
    (tmp_path / "beside.py").touch()
    assert main(["--method", participant(text), "--out", str(tmp_path / "x.ipynb")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.ipynb").exists()
