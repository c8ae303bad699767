"""The built cells where there is no kit: run in an empty namespace they make the package's checkpoints bit for bit."""

import ast
import importlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import data_stubs
from data_stubs.kaggle_tree import write_empty_tree, write_tree
from kit.budget import Plan
from kit.competition import load_original, read_tree, resnet18
from kit.methods import get_method, method_names
from kit.submission import verify
from notebooks.submission import CHECKPOINT, notebook_cells, paste_text, source_of, writefile_cells
from tests.newer_names import newer_in

SEED, INDEX, N_STEPS = 3, 1, 2

# Run by a Python that finds no project: each piece of code in a namespace of its own, then one checkpoint of it.
DRIVER = """
import importlib.util, json, sys
from pathlib import Path

assert not any(importlib.util.find_spec(name) for name in ("kit", "notebooks", "local_eval")), "the project is there"
import torch

torch.set_num_threads(1)
job = json.loads(Path(sys.argv[1]).read_text())
for name, cells in job["cells"].items():
    space = {"__name__": "__main__"}
    for cell in cells:
        exec(compile(cell, name, "exec"), space)
    method = space["method_of"](space["unlearn"], name)
    root = Path(job["tree"])
    loaders = space["read_tree"](root, loader=method.loader, progress=False)
    told = {"seed": job["seed"], "index": job["index"], "plan": space["Plan"](job["steps"])}
    made = space["make_one"](method, space["load_original"](root), loaders, **told)
    Path(job["out"], name).write_bytes(made.data)
"""


def run_alone(folder, text, *arguments):
    """Run a program in a folder, where nothing of the project can be imported; one thread, as the tests have."""
    (folder / "program.py").write_text(text)
    command = [sys.executable, "-I", "program.py", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """An input tree of few images and an untrained ResNet-18."""
    splits = data_stubs.load("synthetic", forget="random:8", n_train=40)
    splits = replace(splits, validation=splits.validation.take(np.arange(8)), test=splits.test.take(np.arange(8)))
    torch.manual_seed(0)
    return write_tree(splits, resnet18().state_dict(), tmp_path_factory.mktemp("cells") / "tree")


def code_of(cells):
    return [text for kind, text in cells if kind == "code"]


@pytest.fixture(scope="module")
def by_cells(tree, tmp_path_factory):
    """Name of a method -> bytes of the checkpoint that its kit cell and method cell make; and those of the paste."""
    folder = tmp_path_factory.mktemp("empty")
    cells = {name: code_of(notebook_cells(source_of(name)))[:2] for name in method_names()}
    cells["pasted"] = [paste_text(source_of("finetune"))]
    (folder / "made").mkdir()
    job = {
        "cells": cells,
        "tree": str(tree),
        "seed": SEED,
        "index": INDEX,
        "steps": N_STEPS,
        "out": str(folder / "made"),
    }
    (folder / "job.json").write_text(json.dumps(job))
    run_alone(folder, DRIVER, folder / "job.json")
    return {path.name: path.read_bytes() for path in (folder / "made").iterdir()}


def by_package(name, tree):
    (module,) = (module for module, function in CHECKPOINT if function == "make_one")
    make_one = importlib.import_module(module).make_one
    method = get_method(name)
    loaders = read_tree(tree, loader=method.loader, progress=False)
    return make_one(method, load_original(tree), loaders, seed=SEED, index=INDEX, plan=Plan(N_STEPS)).data


@pytest.mark.parametrize("name", method_names())
def test_the_cells_make_the_packages_checkpoint(name, by_cells, tree):
    assert by_cells[name] == by_package(name, tree)


def test_the_cell_to_paste_makes_it_too(by_cells):
    assert by_cells["pasted"] == by_cells["finetune"]
    assert by_cells["finetune"] != by_cells["do_nothing"]


def whole(form, name, call):
    """The notebook's code as one program: its files written, and its last call with other arguments."""
    parts = []
    for cell in code_of(form(source_of(name))):
        if cell.startswith("%%writefile "):
            head, _, text = cell.partition("\n")
            parts.append(f"Path({head.split()[1]!r}).write_text({text!r})")
        else:
            parts.append(cell)
    assert "**SETTINGS)" in parts[-1]
    parts[-1] = parts[-1].replace("**SETTINGS)", call)
    body = "\n".join(["import sys", "from pathlib import Path", "", "sys.path.insert(0, '.')", *parts])
    guarded = "\n".join(f"    {line}" for line in parts[-1].splitlines())
    return body if form is notebook_cells else body.replace(parts[-1], f"if __name__ == '__main__':\n{guarded}\n")


@pytest.fixture(scope="module")
def submission(tree, tmp_path_factory):
    """What the whole notebook writes, and its output."""
    folder = tmp_path_factory.mktemp("whole")
    call = f"root=Path({str(tree)!r}), out=Path('out'), **{{**SETTINGS, 'n_checkpoints': 2}})"
    return folder / "out", run_alone(folder, whole(notebook_cells, "finetune", call))


def test_the_whole_notebook_ends_with_a_checked_archive(submission, tree):
    out, printed = submission
    assert printed.splitlines()[0].startswith("preflight: ")
    assert printed.splitlines()[-1].startswith("done: 2 checkpoints")
    checks = verify(out / "submission.zip", 2, load_original(tree).state_dict(), progress=False)
    assert all(check.ok for check in checks), checks


def test_the_whole_notebook_writes_the_packages_archive(submission, tree, tmp_path):
    module = importlib.import_module("kit.submit")
    unlearn = get_method("finetune").function
    ours = module.submit(unlearn, "finetune", n_checkpoints=2, root=tree, out=tmp_path, progress=False)
    assert members(submission[0] / "submission.zip") == members(ours)


def members(archive):
    with zipfile.ZipFile(archive) as file:
        return {info.filename: file.read(info) for info in file.infolist()}


def test_files_and_one_process_per_device_make_the_same_archive(submission, tree, tmp_path):
    call = f"devices=['cpu', 'cpu'], root=Path({str(tree)!r}), out=Path('out'), **{{**SETTINGS, 'n_checkpoints': 2}})"
    printed = run_alone(tmp_path, whole(writefile_cells, "finetune", call))
    assert printed.splitlines()[-1].startswith("done: 2 checkpoints")
    assert members(tmp_path / "out" / "submission.zip") == members(submission[0] / "submission.zip")


def test_where_only_the_public_stand_in_is_mounted_the_archive_is_an_empty_file(tmp_path):
    tree = write_empty_tree(tmp_path / "tree")
    (tmp_path / "out").mkdir()
    call = f"root=Path({str(tree)!r}), out=Path('out'), **SETTINGS)"
    printed = run_alone(tmp_path, whole(notebook_cells, "do_nothing", call))
    assert "stand-in" in printed
    assert Path(tmp_path, "out", "submission.zip").stat().st_size == 0


# -- the competition's image: Python 3.10, torch 2.0 ------------------------------------------------------------------

NEWER = json.loads(Path(__file__).with_name("golden").joinpath("newer_names.json").read_text())


@pytest.mark.parametrize("name", method_names())
def test_the_cells_use_nothing_newer_than_the_competitions_image(name):
    cells = code_of(notebook_cells(source_of(name)))
    several = code_of(writefile_cells(source_of(name)))
    several = [cell.partition("\n")[2] if cell.startswith("%%") else cell for cell in several]
    for text in ("\n".join(cells), "\n".join(several)):
        ast.parse(text, feature_version=(3, 10))
        assert newer_in(text, NEWER) == []


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
