"""The built texts use nothing newer than the competition's image: Python 3.10, torch 2.0; and no unknown name."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from kit.methods import method_names
from notebooks.submission import kit_text, script_text, source_of, whole_kit_text
from tests.newer_names import newer_in

MIXTURE = "mixture(transpose=1, pseudo_label=1)"
NEWER = json.loads(Path(__file__).with_name("golden").joinpath("newer_names.json").read_text())


@pytest.mark.parametrize("name", method_names())
def test_the_cells_use_nothing_newer_than_the_competitions_image(name):
    for text in (kit_text(source_of(name)), source_of(name).text, script_text(source_of(name))):
        ast.parse(text, feature_version=(3, 10))
        assert newer_in(text, NEWER) == []


def test_the_texts_have_no_unknown_or_unused_name(tmp_path):
    for name in [*method_names(), MIXTURE]:
        source = source_of(name)
        (tmp_path / f"{name}.py").write_text(kit_text(source))
        assert max(map(len, kit_text(source).splitlines())) <= 120
        (tmp_path / f"{name}_method.py").write_text(source.text)
        (tmp_path / f"{name}_script.py").write_text(script_text(source))
    (tmp_path / "whole.py").write_text(whole_kit_text(source))
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F,E7,E9,W", "--ignore=E731", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import torch\ntorch.load('x', mmap=True)", "line 2: torch.load(mmap=)"),
        ("from datetime import UTC", "line 1: datetime.UTC"),
        ("import itertools\nitertools.batched([], 2)", "line 2: itertools.batched"),
        ("from torch import nn\nb = nn.Buffer", "line 2: torch.nn.Buffer"),
        ("net.load_state_dict(state, assign=True)", "line 1: load_state_dict(assign=)"),
        ("for folder in path.walk():\n    pass", "line 1: walk"),
        ("raise ExceptionGroup('', [])", "line 1: builtins.ExceptionGroup"),
        ("import torch\ntorch.mps.synchronize()", "line 2: torch.mps"),
        ("import torch\ntorch.optim.SGD([], lr=1, fused=True)", "line 2: torch.optim.SGD(fused=)"),
    ],
)
def test_what_is_newer_is_found(text, found):
    assert newer_in(text, NEWER) == [found]


def test_what_has_a_way_for_older_versions_may_be_newer():
    text = "import torch\ntry:\n    torch.optim.SGD([], lr=1, fused=True)\nexcept TypeError:\n    pass"
    assert newer_in(text, NEWER) == []
