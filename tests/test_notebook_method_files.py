"""A participant's file as a submission: what travels, and what is refused."""

import pytest

from notebooks.build import main
from tests.test_notebooks import MINE, built, code_of, settings_of

PLANNED = "def unlearning(net, retain_loader, forget_loader, val_loader, *, seed, plan=None):\n    return net\n"


def test_a_participants_file_becomes_a_submission(tmp_path, participant):
    kit, method, run = code_of(built(tmp_path, "--set", "lr=0.25", method=participant(MINE)))
    assert "def fine_tune(" in kit
    text = MINE.replace("from kit.training", "from unlearning_kit").partition("\n\n\nif __name__")[0]
    assert method == f"%%writefile unlearning_method.py\n{text}\n"
    assert settings_of(run)["settings"] == {"lr": 0.25}
    assert run.endswith('submit("unlearning_method.py", **SETTINGS)')


@pytest.fixture
def beside(tmp_path):
    """Modules beside a participant's file: helper.py, the packages whole/ and loose/, folders and files that bear
    names of others."""
    for name in ("helper.py", "copy.py", "whole/__init__.py", "loose/part.py", "torch/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "import torch, helper",
            "mine.py, line 5: imports helper.py, which does not travel: put what it needs into one",
        ),
        ("from whole import x", "imports whole/, which"),
        ("import loose.part", "imports loose/, which"),
        ("try:\n        import helper\n    except ImportError:\n        pass", "line 6: imports helper.py, which"),
        ("import kit.plan", "line 5: an import of the kit inside a function: move it up as from kit.plan import"),
        ("import kit", "move it up as from kit import"),
        ("from local_eval.models import tinyconv", "imports local_eval, which"),
        ("from data_stubs import load", "imports data_stubs, which"),
        ("import notebooks.percent as cells", "imports notebooks, which"),
    ],
)
def test_what_does_not_travel_is_found_wherever_it_is_imported(line, message, beside, tmp_path, participant, capsys):
    head = "import torch\n\n\ndef unlearning(net, retain_loader, forget_loader, val_loader):\n"
    assert main(["--method", participant(f"{head}    {line}\n"), "--out", str(tmp_path / "x.ipynb")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_names_that_stand_beside_and_are_pythons_or_installed_travel(beside, tmp_path, participant):
    text = MINE.replace("import torch\n", "import copy\nimport torch\nfrom torch import nn\n").replace(
        '    print("not', '    import helper\n    print("not'
    )
    assert "import copy" in code_of(built(tmp_path, method=participant(text)))[1]


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ("", "utf-8-sig"),
        ("# coding: latin-1\n", "latin-1"),
        ("#!/usr/bin/python\n# -*- coding: cp1252 -*-\n", "cp1252"),
    ],
)
def test_a_file_in_another_encoding_travels_as_utf_8(head, encoding, tmp_path, participant):
    mine = participant("")
    text = MINE.replace("Mine.", "Größe.")
    (tmp_path / "mine.py").write_text(head + text, encoding=encoding)
    method = code_of(built(tmp_path, method=mine))[1].partition("\n")[2]
    assert method.removeprefix("#!/usr/bin/python\n\n").startswith('"""Größe."""\nimport torch\n')
    assert "coding" not in method


@pytest.mark.parametrize("text", ["# é\n" + PLANNED, PLANNED + "# é\n"])
def test_a_comment_in_an_encoding_that_is_not_named_is_told(text, tmp_path, participant, capsys):
    mine = participant("")
    (tmp_path / "mine.py").write_text(text, encoding="latin-1")
    assert main(["--method", mine, "--out", str(tmp_path / "x.ipynb")]) == 2
    assert "mine.py: is not UTF-8, and names no other encoding" in capsys.readouterr().err


def test_a_file_that_takes_nothing_from_the_kit_may_be_a_program_too(tmp_path, participant):
    text = "def unlearning(net, retain_loader, forget_loader, val_loader):\n    return net\n"
    method = code_of(built(tmp_path, method=participant(f'{text}\nif __name__ == "__main__":\n    print(1)\n')))[1]
    assert method == f"%%writefile unlearning_method.py\n{text}"


@pytest.mark.parametrize("name", ["my method", "unlearning_kit", "copy", "-p", "$HOME"])
def test_parts_of_a_mixture_whose_names_a_notebook_cannot_write_are_refused(name, tmp_path, participant, capsys):
    mixture = f"mixture({participant(PLANNED, f'{name}.py')}=1, finetune=2)"
    assert main(["--method", mixture, "--out", str(tmp_path / "x.ipynb")]) == 2
    error = capsys.readouterr().err
    assert f"{name}.py cannot lie beside the notebook" in error
    assert error.count("\n") == 1


def test_parts_of_a_mixture_bear_the_names_of_their_files(tmp_path, participant):
    cells = code_of(built(tmp_path, method=f"mixture({participant(PLANNED, 'my-method.py')}=1, finetune=2)"))
    assert [cell.partition("\n")[0] for cell in cells[1:3]] == ["%%writefile my-method.py", "%%writefile finetune.py"]


def test_a_function_of_another_name_is_named_in_the_run_cell(tmp_path, participant):
    mine = participant(MINE.replace("def unlearning", "def forget"))
    run = code_of(built(tmp_path, method=f"{mine}:forget"))[2]
    assert run.endswith('submit("unlearning_method.py:forget", **SETTINGS)')


def test_imports_from_the_kit_become_one(tmp_path, participant):
    text = MINE.replace(
        "import fine_tune\n", "import fine_tune as tune\nfrom kit.methods.shared.surgery import (\n    add_noise,\n)\n"
    )
    kit, method, _ = code_of(built(tmp_path, method=participant(text.replace("return fine_tune", "return tune"))))
    assert "\nimport torch\nfrom unlearning_kit import add_noise, fine_tune as tune\n\nSCALE" in method
    assert "def add_noise(" in kit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINE.replace("import torch", "import beside"), "imports beside.py, which does not travel"),
        (MINE.replace("from kit.training import fine_tune", "import kit.training"), "write from kit.training import"),
        (
            MINE.replace("    return", "    from kit.methods.shared.surgery import add_noise\n    return"),
            "inside a function: move it up",
        ),
        (
            MINE.replace("from kit", "from kit.plan import planned_steps; from kit") + "\nLR = 0.01\n",
            "mine.py, line 3: an import from the kit shares its line: give it one alone",
        ),
        (MINE.replace("fine_tune\n", "fine_tune; import copy\n", 1), "line 3: an import from the kit shares its line"),
        (MINE.replace("import torch\n", "import torch; ", 1), "line 2: an import from the kit shares its line"),
        (
            MINE + "else:\n    LR = 3\n",
            'mine.py, line 15: the else of `if __name__ == "__main__"` does not travel: write what it does without',
        ),
        (MINE + "elif SCALE:\n    LR = 3\n", "line 14: the else of `if"),
    ],
)
def test_files_that_cannot_travel_are_refused(text, message, tmp_path, participant, capsys):
    (tmp_path / "beside.py").touch()
    assert main(["--method", participant(text), "--out", str(tmp_path / "x.ipynb")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.ipynb").exists()
