"""Methods in a folder outside the project, found by their names once LOCAL_EVAL_METHODS names it."""

import json

import nbformat
import pytest

from kit.__main__ import main as kit
from kit.errors import InputError
from kit.tools.folder import VARIABLE, all_method_names, find_method, own_methods
from local_eval.__main__ import main
from local_eval.leaderboard import KITS_OWN, entrants
from notebooks.build import main as build

SHIFT = """\"\"\"Shift: noise on the last layer's bias.\"\"\"
import torch
from help_with import scaled

RANGES = {"by": (0.1, 1.0)}

def unlearning(net, retain_loader, forget_loader, val_loader, *, seed, plan=None, by=0.5):
    torch.manual_seed(seed)
    net.fc.bias.data += scaled(by) * torch.randn(10)
"""

ALONE = SHIFT.replace("from help_with import scaled\n", "").replace("scaled(by)", "by")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "my methods"
    folder.mkdir()
    (folder / "shift.py").write_text(SHIFT)
    (folder / "help_with.py").write_text("def scaled(by): return by\n")
    monkeypatch.setenv(VARIABLE, str(folder))
    return folder


def test_they_are_listed_and_told(folder, capsys):
    assert list(own_methods()) == ["shift"]
    assert kit(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == all_method_names()
    assert "shift                 Shift: noise on the last layer's bias." in lines
    assert kit(["methods", "shift"]) == 0
    assert "by = 0.5" in capsys.readouterr().out
    assert kit(["methods", "shfit"]) == 2
    assert f"did you mean shift, in {folder}?" in capsys.readouterr().err


def test_each_command_takes_their_names(folder, tmp_path, capsys):
    names = [entrant.name for entrant in entrants()]
    assert names[-1] == "shift" and len(names) == len(KITS_OWN) + 1
    assert find_method("mixture(shift=1, finetune=2)").components[0].name == "shift"
    words = ["--source", "digits", "--n-train", "200", "--forget", "random:20", "--architecture", "tinyconv"]
    words += ["--epochs", "1", "--work-dir", str(tmp_path / "runs"), "--slots", "1", "--quiet", "--json"]
    assert main(["train", *words]) == 0
    capsys.readouterr()
    assert main(["unlearn", *words, "--n-models", "2", "--method", "shift", "--set", "by=0.1"]) == 0
    assert "/shift-" in json.loads(capsys.readouterr().out)["pool"]
    assert main(["tune", "shift", *words, "--n-models", "4", "--trials", "2", "--check-models", "0"]) == 0
    assert list(json.loads(capsys.readouterr().out)["ranges"]) == ["by"]


def test_they_are_built_as_submissions(folder, tmp_path, capsys):
    (folder / "shift.py").write_text(ALONE)
    for spec in ("shift", "mixture(shift=1, finetune=2)"):
        out = tmp_path / "shift.ipynb"
        assert (
            build(["--method", spec, "--set", f"{'' if spec == 'shift' else 'shift.'}by=0.25", "--out", str(out)]) == 0
        )
        cells = [cell.source for cell in nbformat.read(out, as_version=4).cells]
        assert sum("net.fc.bias.data += by * torch.randn(10)" in text for text in cells) == 1
        assert 'by": 0.25' in cells[-1]
    assert build(["--method", "shfit", "--out", str(out)]) == 2
    assert f"did you mean shift, in {folder}?" in capsys.readouterr().err


def test_what_is_no_folder_and_what_has_a_name_that_is_taken(folder, monkeypatch):
    (folder / "ssd.py").write_text(SHIFT)
    with pytest.raises(InputError, match=r"ssd.py: ssd is a method of the kit: give the file another name"):
        find_method("finetune")
    monkeypatch.setenv(VARIABLE, str(folder / "gone"))
    with pytest.raises(InputError, match="gone: is no folder"):
        all_method_names()
    monkeypatch.delenv(VARIABLE)
    assert own_methods() == {}
