"""The builder: notebooks from their sources, drift, and a method in each of its forms. What the cells do when they
run: test_notebook_cells.py."""

import ast
import json
import re

import nbformat
import pytest
from nbformat.v4 import new_output

from kit.errors import InputError
from notebooks import kept as builder
from notebooks.build import FORMS, main
from notebooks.kept import Kept, build, differences, execute, kept, settled
from notebooks.percent import cells_of, notebook_of, script_of
from notebooks.starter import write_program
from notebooks.submission import kernel_metadata

KEPT = kept()


# -- what is committed ------------------------------------------------------------------------------------------------


def test_committed_notebooks_equal_a_rebuild(capsys):
    assert main(["--check"]) == 0, capsys.readouterr().out
    assert len(KEPT) >= 4


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
    monkeypatch.setattr(builder, "SUBMISSIONS", ())
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


def settings_of(text):
    """The dict SETTINGS of a program."""
    (node,) = (n for n in ast.parse(text).body if isinstance(n, ast.Assign) and n.targets[0].id == "SETTINGS")
    return ast.literal_eval(node.value)


def test_a_notebook_has_three_cells_of_code_and_the_method_alone_in_the_second(tmp_path, capsys):
    path = built(tmp_path)
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [c.cell_type for c in notebook.cells] == ["markdown", "code"] * 3
    assert notebook.metadata.kernelspec.name == "python3", "Kaggle does not run a notebook without one"
    folded = [cell.metadata.get("_kg_hide-input", False) for cell in notebook.cells]
    assert folded == [False, True, False, False, False, False], "the method is what one sees first"
    kit, method, run = code_of(path)
    assert kit.startswith("%%writefile unlearning_kit.py\n# Unlearning Submission Kit ")
    assert "sha256" in kit.splitlines()[2]
    assert method.startswith("%%writefile unlearning_method.py\n")
    assert [n.name for n in ast.parse(method.partition("\n")[2]).body if hasattr(n, "name")] == ["unlearn"]
    assert "\nfrom unlearning_kit import Plan, fine_tune, planned_steps\n" in method
    assert run.startswith("SETTINGS = {\n")
    assert run.endswith('\nfrom unlearning_kit import submit\n\nsubmit("unlearning_method.py", **SETTINGS)')
    assert "from kit" not in kit + method + run
    assert f"python -m local_eval dry-run {path}" in capsys.readouterr().out


def test_the_kit_cell_of_fine_tuning_does_not_grow(tmp_path):
    assert len(code_of(built(tmp_path))[0].splitlines()) <= 1600


def test_the_kit_cell_holds_no_way_to_methods_that_it_does_not_carry(tmp_path):
    tree = ast.parse(code_of(built(tmp_path))[0].partition("\n")[2])
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert "submit" in defined
    assert defined.isdisjoint({"get_method", "method_names", "with_settings", "profile"})
    assert not {"__path__", "__file__"} & {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_settings_stand_in_the_run_cell_and_leave_the_methods_text(tmp_path, participant):
    _, method, run = code_of(built(tmp_path, "--set", "lr=0.125", "--set", "epochs=3", "--set", "bfloat16=yes"))
    assert settings_of(run) == {
        "n_checkpoints": 512,
        "limit": "7h45m",
        "seed": 0,
        "dtype": "float16",
        "settings": {"lr": 0.125, "epochs": 3.0, "bfloat16": True},
    }
    assert method == code_of(built(tmp_path))[1]
    mine = participant("def unlearning(net, a, b, c, most=1.0, kind='a', steps=None): ...")
    options = ["--set", "most=inf", "--set", 'kind="b"', "--set", "steps=4"]
    run = code_of(built(tmp_path, *options, method=mine))[2]
    assert """{"most": float("inf"), "kind": '"b"', "steps": 4}""" in run


@pytest.mark.parametrize("form", ["notebook", "script", "attached"])
def test_the_description_for_the_upload(form, tmp_path):
    suffix = FORMS[form]
    path = built(tmp_path, "--user", "me", "--form", form, method="l2_penalty", suffix=suffix)
    facts = json.loads(path.with_name("kernel-metadata.json").read_text())
    assert facts["id"] == "me/unlearning-l2-penalty"
    assert facts["title"].replace(" ", "-") == facts["id"].partition("/")[2], "Kaggle makes the address of the title"
    assert facts["code_file"] == path.name
    assert (facts["kernel_type"], facts["language"]) == ("script" if form == "script" else "notebook", "python")
    assert (facts["enable_gpu"], facts["machine_shape"], facts["enable_internet"]) == (True, "NvidiaTeslaT4", False)
    assert facts["competition_sources"] == ["neurips-2023-machine-unlearning"]
    assert facts["dataset_sources"] == (["me/unlearning-submission-kit"] if form == "attached" else [])


def test_a_second_notebook_in_a_folder_says_whose_description_it_takes(tmp_path, capsys):
    built(tmp_path)
    assert "was that of" not in capsys.readouterr().out
    main(["--method", "ssd", "--out", str(tmp_path / "folder" / "other.ipynb")])
    assert "kernel-metadata.json was that of mine.ipynb: give each notebook a folder" in capsys.readouterr().out


MINE = '''"""Mine."""
import torch
from kit.training import fine_tune

SCALE = 0.5


def unlearning(net, retain_loader, forget_loader, val_loader, lr=0.01):
    return fine_tune(net, retain_loader, 2, lr=SCALE * lr)


if __name__ == "__main__":
    print("not on Kaggle")
'''


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """The folder where Kaggle's client keeps what it knows of the user: nothing."""
    monkeypatch.delenv("KAGGLE_USERNAME", raising=False)
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "kaggle"))
    (tmp_path / "kaggle").mkdir()
    return tmp_path / "kaggle"


def owner_of(path):
    return json.loads(path.with_name("kernel-metadata.json").read_text())["id"].partition("/")[0]


def test_the_owner_is_whom_kaggles_client_goes_by(tmp_path, kaggle, monkeypatch, capsys):
    (kaggle / "kaggle.json").write_text('{"username": "in-file", "key": "0"}')
    assert owner_of(built(tmp_path)) == "in-file"
    assert capsys.readouterr().out.endswith(f"; then kaggle kernels push -p {tmp_path / 'folder'}\n")
    monkeypatch.setenv("KAGGLE_USERNAME", "in_variable")
    assert owner_of(built(tmp_path)) == "in_variable"
    assert owner_of(built(tmp_path, "--user", "me")) == "me"
    assert json.loads(next(item.metadata for item in builder.kept() if item.metadata))["id"].startswith("your-name/")


@pytest.mark.parametrize("form", ["notebook", "script", "attached"])
@pytest.mark.parametrize("known", [None, "{", '["username"]', '{"key": "0"}'])
def test_a_placeholder_as_owner_is_told(form, known, tmp_path, kaggle, capsys):
    if known is not None:
        (kaggle / "kaggle.json").write_text(known)
    assert owner_of(built(tmp_path, "--form", form, suffix=FORMS[form])) == "your-name"
    said = capsys.readouterr().out.splitlines()[-1]
    assert "build it again with --user and your name on Kaggle instead of your-name; then kaggle " in said
    assert said.endswith(f"; then kaggle kernels push -p {tmp_path / 'folder'}")


def test_names_that_kaggle_has_not_are_refused(tmp_path, kaggle, monkeypatch, capsys):
    def told(message, *options):
        assert main(["--method", "finetune", "--out", str(tmp_path / "x.ipynb"), *options]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "x.ipynb").exists()

    for name in ("", "me/x", "Jane Doe", "größe", "a\n"):
        told("is no name on Kaggle: give yours", "--user", name)
    monkeypatch.setenv("KAGGLE_USERNAME", "Jane Doe")
    told("KAGGLE_USERNAME 'Jane Doe': is no name on Kaggle")
    monkeypatch.delenv("KAGGLE_USERNAME")
    (kaggle / "kaggle.json").write_text('{"username": "Jane Doe"}')
    told("kaggle.json: username 'Jane Doe': is no name on Kaggle")


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("a", "unlearning-a"),
        ("Mine_v2.final", "unlearning-mine-v2-final"),
        ("größe", "unlearning-gr-e"),
        ("_" * 60, "unlearning"),
        ("a_name_that_has_far_more_than_fifty_letters", "unlearning-a-name-that-has-far-more-than-fifty-let"),
        ("a_name_that_has_far_more_than_fifty_or_so_letters", "unlearning-a-name-that-has-far-more-than-fifty-or"),
    ],
)
def test_the_address_on_kaggle_has_5_to_50_characters(name, slug):
    facts = json.loads(kernel_metadata(name, "x.ipynb", "me"))
    assert facts["id"] == f"me/{slug}"
    assert re.sub("[^a-z0-9]+", "-", facts["title"].lower()) == slug
    assert 5 <= len(slug) <= 50


def test_the_attached_form_comes_with_its_data_set(tmp_path, capsys):
    path = built(tmp_path, "--form", "attached", "--user", "me")
    kit = path.parent / "kit"
    facts = json.loads((kit / "dataset-metadata.json").read_text())
    assert facts["id"] == "me/unlearning-submission-kit"
    assert facts["title"].replace(" ", "-") == "unlearning-submission-kit"
    assert facts["licenses"] == [{"name": "other"}]
    assert f"kaggle datasets create -p {kit}" in capsys.readouterr().out
    defined = {node.name for node in ast.parse((kit / "unlearning_kit.py").read_text()).body if hasattr(node, "name")}
    assert {"submit", "streamed_inverse_product", "add_noise"} <= defined, "what any method of the kit needs"
    lines = [line for text in code_of(path) for line in text.splitlines()]
    assert len(lines) < 65
    assert "def submit" not in "\n".join(lines)


def test_a_kit_that_is_uploaded_already_has_what_another_method_is_advised_to_import(tmp_path, participant, capsys):
    text = MINE.replace("import fine_tune\n", "import fine_tune\nfrom kit.tools.batches import takes_pairs\n")
    text = text.replace("import torch\n", "import torch\nfrom kit.plan import planned_steps\n")
    files = [
        built(tmp_path / "kits", "--form", "attached"),
        built(tmp_path, "--form", "attached", method=participant(text)),
    ]
    uploaded, needed = ((path.parent / "kit" / "unlearning_kit.py").read_text() for path in files)
    assert "def takes_pairs(" in uploaded
    assert needed == uploaded
    assert "kaggle datasets version" not in capsys.readouterr().out


def test_a_method_that_needs_more_of_the_kit_than_others_is_told_to_renew_it(tmp_path, participant, capsys):
    text = MINE.replace("import fine_tune\n", "import fine_tune\nfrom kit.tools.folder import own_methods\n")
    path = built(tmp_path, "--form", "attached", method=participant(text.replace("SCALE = 0.5", "SCALE = own_methods")))
    kit = path.parent / "kit"
    said = f"kaggle datasets create -p {kit} (kaggle datasets version -p {kit} -m mine where it exists: mine needs more"
    assert said in capsys.readouterr().out


def test_the_form_of_a_script_writes_both_modules_only_where_it_is_the_program(tmp_path):
    script = built(tmp_path, "--form", "script", "--set", "lr=0.5", suffix=".py").read_text()
    assert settings_of(script)["settings"] == {"lr": 0.5}
    kinds = [type(node) for node in ast.parse(script, feature_version=(3, 10)).body]
    assert kinds == [ast.Import, ast.ImportFrom, ast.Assign, ast.Assign, ast.Assign, ast.If]
    kit, method, _ = code_of(built(tmp_path))
    assert "KIT = r'''" + kit.partition("\n")[2].rstrip() in script
    assert "METHOD = r'''" + method.partition("\n")[2].rstrip() in script


def test_the_form_of_a_cell_is_printed_and_says_how_to_use_it(tmp_path, capsys):
    assert main(["--method", "finetune", "--form", "cell", "--set", "lr=0.5"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("%%writefile unlearning_kit.py\n")
    assert '\n#     submit(unlearning, settings={"lr": 0.5})\n' in text
    assert text.endswith(code_of(built(tmp_path))[0].partition("\n")[2].rstrip() + "\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "nonsense"], "method 'nonsense': unknown"),
        (["--method", "finetune", "--set", "nonsense=1"], "no hyper-parameter 'nonsense'"),
        (["--method", "finetune", "--out", "x.py"], "a notebook is a .ipynb file"),
        (["--method", "no/such/file.py"], "no such file"),
        (["--method", "finetune", "--out", "/proc/no/x.ipynb"], "cannot be written"),
        (["--method", "finetune", "--out", f"{__file__}/x.ipynb"], "cannot be written"),
        (["--method", "finetune", "--out", f"{'x' * 300}.ipynb"], "x.ipynb: cannot be written (File name too long)"),
        (["nonsense"], "no such notebook here"),
        (["--out", "x.ipynb"], "goes with --method"),
        (["--form", "cell", "--check"], "--form goes with --method"),
        (["--user", "me", "--check"], "--user goes with --method"),
        (["--method", "", "--check"], "--check: --method builds one notebook"),
        (
            ["--method", "finetune", "lr=0.1"],
            "lr=0.1: --method builds one notebook: leave it out, or put --set before a setting",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_starter_is_written_into_a_new_folder_or_a_line_says_why_not(tmp_path):
    assert write_program(tmp_path / "new" / "starter.ipynb").exists()
    (tmp_path / "file").touch()
    for name in ("file/starter.ipynb", f"{'x' * 300}.py"):
        with pytest.raises(InputError, match=r"cannot be written \(.*\): choose another place"):
            write_program(tmp_path / name)
