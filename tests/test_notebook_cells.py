"""The built forms where there is no kit: run in an empty folder they make the package's checkpoints bit for bit."""

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nbclient import NotebookClient

import data_stubs
from data_stubs.kaggle_tree import write_empty_tree, write_tree
from kit.archive import state_hash
from kit.checkpoint import unlearn_once
from kit.competition import MODEL_FILE, load_original, resnet18
from kit.errors import InputError
from kit.methods import get_method, method_names
from kit.plan import Plan
from kit.submit import read_problem
from kit.tools.own import own_function, read_spec
from kit.tools.verify import verify
from notebooks.percent import notebook_of
from notebooks.submission import (
    attached_cells,
    cell_text,
    kit_text,
    notebook_cells,
    script_text,
    source_of,
    whole_kit_text,
)

MADE = {"seed": 3, "index": 1}
N_STEPS = 2
submit = importlib.import_module("kit.submit").submit


def run_alone(folder, program, *, refused=False):
    """What a program prints in a folder where nothing of the project can be imported; one thread, as the tests have.
    refused: it has to fail, and what it says as its last word is given."""
    (folder / "program.py").write_text(program)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "program.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert bool(done.returncode) == refused, done.stderr[-3000:]
    return done.stderr.strip().splitlines()[-1] if refused else done.stdout


def program_of(cells, **settings):
    """Cells as one program: what `%%writefile` writes is written, settings are changed, the names that are left are
    printed last."""
    parts = ["import sys", "sys.path.insert(0, '')"]
    for kind, text in cells:
        if text.startswith("%%writefile "):
            head, _, body = text.partition("\n")
            parts.append(f"open({head.split()[1]!r}, 'w').write({body!r})")
        elif kind == "code":
            parts.append(with_settings(text, **settings))
    parts = [f"exec({part!r}, space)" for part in parts]
    names = "print('names', *sorted(name for name in space if not name.startswith('__')))"
    return "\n".join(["space = {'__name__': '__main__'}", *parts, names])


def with_settings(text, **settings):
    """The same with other settings."""
    for name in settings:
        text = "\n".join(line for line in text.split("\n") if not line.lstrip().startswith(f'"{name}":'))
    values = {"n_checkpoints": 2, "out": "out", "work": "work", **settings}
    said = [f"{name!r}: __import__('pathlib').Path({value!r})" for name, value in values.items() if name in FOLDERS]
    said += [f"{name!r}: {value!r}" for name, value in values.items() if name not in FOLDERS]
    text = text.replace('    "n_checkpoints": 512,\n', "")
    assert text.count("SETTINGS = {\n") == 1
    return text.replace("SETTINGS = {\n", f"SETTINGS = {{\n    {', '.join(said)},\n")


FOLDERS = ("root", "out", "work")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """An input tree of few images and an untrained ResNet-18."""
    splits = data_stubs.load("synthetic", forget="random:8", n_train=40)
    splits = replace(splits, validation=splits.validation.take(np.arange(8)), test=splits.test.take(np.arange(8)))
    torch.manual_seed(0)
    return write_tree(splits, resnet18().state_dict(), tmp_path_factory.mktemp("cells") / "tree")


def members(folder):
    with zipfile.ZipFile(folder / "submission.zip") as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def by_package(method, tree, folder):
    """What the package submits for a function or a file."""
    return members(submit(method, n_checkpoints=2, root=tree, out=folder / "out", work=folder / "work").parent)


@pytest.fixture(scope="module")
def finetuned(tree, tmp_path_factory):
    return by_package(get_method("finetune").function, tree, tmp_path_factory.mktemp("package"))


# -- every method -----------------------------------------------------------------------------------------------------

# A small net of the user's own: thirty methods on a ResNet-18 take minutes. The forms below have a ResNet-18.
NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 32, 3, 2, bias=False), nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, 10)

    def forward(self, images):
        maps = self.bn1(self.conv1(images / 255)).relu()
        return self.fc(self.bn2(self.conv2(maps)).relu().mean((2, 3)))

def net():
    return Net()
"""

# Run by a Python that finds no project: one checkpoint of each method by the two modules in its folder.
DRIVER = """
import importlib.util, json, os, sys
from pathlib import Path

assert not any(importlib.util.find_spec(name) for name in ("kit", "notebooks", "local_eval")), "the project is there"
sys.path.insert(0, "")
import torch

from net import net as architecture

torch.set_num_threads(1)
job = json.loads(Path("job.json").read_text())
for folder in map(Path, job["folders"]):
    os.chdir(folder)
    sys.modules.pop("unlearning_kit", None)
    importlib.invalidate_caches()
    kit = importlib.import_module("unlearning_kit")
    assert Path(kit.__file__).parent == folder
    method = kit.method_from_file("unlearning_method.py")
    problem = kit.read_problem(Path(job["tree"]), method, "cpu", architecture=architecture, progress=False)
    net, _ = kit.unlearn_once(method, *problem, **job["made"], plan=kit.Plan(job["steps"]))
    torch.save(net.state_dict(), folder / "made.pth")
"""


@pytest.fixture(scope="module")
def small(tree, tmp_path_factory):
    """A folder with the small net's file, the function of it, and the tree of its original model."""
    top = tmp_path_factory.mktemp("methods")
    (top / "net.py").write_text(NET)
    function = own_function(read_spec(f"{top}/net.py:net", "net"), "net")
    shutil.copytree(tree, top / "tree")
    torch.manual_seed(0)
    torch.save(function().state_dict(), top / "tree" / MODEL_FILE)
    return top, function


@pytest.fixture(scope="module")
def by_cells(small):
    """Name of a method -> the state dict that its cells make."""
    top, _ = small
    folders = {name: top / name for name in method_names()}
    for name, folder in folders.items():
        folder.mkdir()
        for _, text in notebook_cells(source_of(name)):
            if text.startswith("%%writefile "):
                head, _, body = text.partition("\n")
                (folder / head.split()[1]).write_text(body)
    job = {
        "folders": [str(folder) for folder in folders.values()],
        "tree": str(top / "tree"),
        "made": MADE,
        "steps": N_STEPS,
    }
    (top / "job.json").write_text(json.dumps(job))
    run_alone(top, DRIVER)
    return {name: torch.load(folder / "made.pth", weights_only=True) for name, folder in folders.items()}


@pytest.mark.parametrize("name", method_names())
def test_the_cells_make_the_packages_checkpoint(name, by_cells, small):
    method, (top, architecture) = get_method(name), small
    problem = read_problem(top / "tree", method, "cpu", architecture=architecture, progress=False)
    net, _ = unlearn_once(method, *problem, **MADE, plan=Plan(N_STEPS))
    assert state_hash(by_cells[name]) == state_hash(net.state_dict())


def test_methods_make_different_checkpoints(by_cells):
    assert len(set(map(state_hash, by_cells.values()))) == len(by_cells)


MIXTURE = "mixture(transpose=1, pseudo_label=1)"
SHORT = ["transpose.epochs=1", "pseudo_label.epochs=1", "pseudo_label.label_epochs=1"]


@pytest.fixture(scope="module")
def mixed(tree, tmp_path_factory):
    return by_package(get_method(MIXTURE, SHORT), tree, tmp_path_factory.mktemp("mixture"))


def test_the_cells_of_a_mixture_write_the_packages_archive(tree, mixed, tmp_path):
    cells = notebook_cells(source_of(MIXTURE, SHORT))
    written = [text.split()[1] for _, text in cells if text.startswith("%%writefile ")]
    assert written == ["unlearning_kit.py", "transpose.py", "pseudo_label.py"]
    printed = run_alone(tmp_path, program_of(cells, root=str(tree))).splitlines()
    assert printed[-1] == "names SETTINGS method_from_file mixture_of submit sys"
    assert members(tmp_path / "out") == mixed


def test_the_script_of_a_mixture_with_two_processes_writes_the_same(tree, mixed, tmp_path):
    text = script_text(source_of(MIXTURE, SHORT))
    run_alone(tmp_path, with_settings(text, root=str(tree), devices=["cpu", "cpu"]))
    assert members(tmp_path / "out") == mixed


def test_the_files_of_a_mixture_do_not_overwrite_each_other(participant, tmp_path):
    text = "def {}(net, a, b, c, *, seed, plan=None): plan.steps(1)\n"
    mine = participant(text.format("one") + text.format("two"))
    with pytest.raises(InputError, match="two of its files have one name: give them different ones"):
        notebook_cells(source_of(f"mixture({mine}:one=1, {mine}:two=1)"))
    cells = notebook_cells(source_of(f"mixture({mine}:one=1, finetune=2)"))
    assert 'method_from_file("mine.py:one"), method_from_file("finetune.py")], [1, 2])' in cells[-1][1]


# -- every form -------------------------------------------------------------------------------------------------------


def test_the_notebook_in_a_kernel_with_two_processes_writes_the_packages_archive(tree, finetuned, tmp_path):
    cells = notebook_cells(source_of("finetune"))
    settings = {"root": str(tree), "devices": ["cpu", "cpu"]}
    told = [*cells[:-1], ("code", with_settings(cells[-1][1], **settings))]
    no_project = ("code", "import importlib.util\nassert not importlib.util.find_spec('kit')")
    notebook = notebook_of([no_project, *told])
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    printed = "".join(output.get("text", "") for output in client.execute().cells[-1].outputs)
    assert "preflight: 48 images, cpu, cpu" in printed
    assert "done: 2 checkpoints" in printed
    assert members(tmp_path / "out") == finetuned


def test_the_notebook_ends_with_a_checked_archive_and_leaves_two_names(tree, finetuned, tmp_path):
    printed = run_alone(tmp_path, program_of(notebook_cells(source_of("finetune")), root=str(tree))).splitlines()
    assert printed[0].startswith("preflight: ")
    assert printed[-2].startswith("done: 2 checkpoints")
    assert printed[-1] == "names SETTINGS submit sys"  # the test's own is sys
    assert members(tmp_path / "out") == finetuned
    checks = verify(tmp_path / "out" / "submission.zip", 2, load_original(tree).state_dict(), progress=False)
    assert all(check.ok for check in checks), checks


def test_the_script_with_two_processes_writes_the_same(tree, finetuned, tmp_path):
    text = script_text(source_of("finetune"))
    run_alone(tmp_path, with_settings(text, root=str(tree), devices=["cpu", "cpu"]))
    assert members(tmp_path / "out") == finetuned


def test_a_process_that_imports_the_script_does_nothing(tmp_path):
    (tmp_path / "finetune.py").write_text(script_text(source_of("finetune")))
    run_alone(tmp_path, "import sys\nsys.path.insert(0, '')\nimport finetune\n")
    assert not (tmp_path / "unlearning_kit.py").exists()


def test_a_script_may_carry_any_text(tmp_path, participant):
    mine = f'{MINE}\nTEXTS = "\'\'\'", r"\\n", "\\n"\n'
    source = source_of(participant(mine))
    parts = {}
    exec(compile(script_text(source), "script", "exec"), {**parts, "__name__": "imported"}, parts)
    assert parts["METHOD"] == source.text
    assert parts["KIT"] == kit_text(source)
    assert "'''" not in "".join(whole_kit_text(source_of(name)) for name in method_names()[:1])


@pytest.mark.parametrize("place", ["kit-of-mine", "datasets/me/unlearning-submission-kit", "a/kit"])
def test_the_attached_form_finds_its_kit_wherever_it_is_mounted(place, tmp_path):
    tree = write_empty_tree(tmp_path / "tree")
    (tmp_path / "out").mkdir()
    cells = attach(tmp_path, place, "do_nothing")
    printed = run_alone(tmp_path, program_of(cells, root=str(tree)))
    assert printed.startswith("stand-in data: ")
    assert printed.splitlines()[-1] == "names Path SETTINGS kit submit sys"


def test_the_attached_form_says_what_is_missing(tmp_path):
    cells = attach(tmp_path, "kit-of-mine", "do_nothing")
    (tmp_path / "input" / "kit-of-mine" / "unlearning_kit.py").unlink()
    last = run_alone(tmp_path, program_of(cells), refused=True)
    assert last.endswith("unlearning_kit.py below /kaggle/input: add the data set me/unlearning-submission-kit")


def test_the_attached_form_writes_the_same(tree, finetuned, tmp_path):
    cells = attach(tmp_path, "datasets/me/unlearning-submission-kit", "finetune")
    run_alone(tmp_path, program_of(cells, root=str(tree)))
    assert members(tmp_path / "out") == finetuned


def attach(folder, place, name):
    """The attached form's cells, its data set mounted below `folder`/input."""
    kit = folder / "input" / place / "unlearning_kit.py"
    kit.parent.mkdir(parents=True)
    kit.write_text(whole_kit_text(source_of(name)))
    cells = attached_cells(source_of(name), "me")
    assert sum(len(text.splitlines()) for kind, text in cells if kind == "code") < 65
    return [(kind, text.replace('Path("/kaggle/input")', f"Path({str(folder / 'input')!r})")) for kind, text in cells]


MINE = """
import torch
from kit.training import fine_tune

AMOUNT = 0.001


def unlearning(net, retain_loader, forget_loader, val_loader):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(AMOUNT * torch.randn_like(parameter))
"""


@pytest.fixture(scope="module")
def made_of_mine(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(MINE)
    return by_package(str(folder / "mine.py"), tree, folder)


def test_the_cell_serves_a_notebook_with_an_unlearning_of_its_own(tree, made_of_mine, tmp_path):
    cell = cell_text(source_of("finetune"))
    body = cell.partition("\n")[2]
    call = next(line for line in body.splitlines() if line.startswith("#     submit("))
    told = f"root=Path({str(tree)!r}), out=Path('out'), work=Path('work'), n_checkpoints=2, devices=['cpu', 'cpu']"
    parts = [
        MINE.replace("kit.training", "unlearning_kit"),
        "from pathlib import Path",
        "from unlearning_kit import submit",
    ]
    call = call.removeprefix("# ").strip().replace("unlearning)", f"unlearning, {told})")
    parts = [f"open('unlearning_kit.py', 'w').write({body!r})", "import sys", "sys.path.insert(0, '')", *parts, call]
    printed = run_alone(tmp_path, "\n".join(parts))
    assert "one of 2 devices is used" in printed
    assert members(tmp_path / "out") == made_of_mine


def test_where_only_the_public_stand_in_is_mounted_the_archive_is_an_empty_file(tmp_path):
    tree = write_empty_tree(tmp_path / "tree")
    (tmp_path / "out").mkdir()
    printed = run_alone(tmp_path, program_of(notebook_cells(source_of("do_nothing")), root=str(tree)))
    assert "stand-in" in printed
    assert Path(tmp_path, "out", "submission.zip").stat().st_size == 0


# -- what a participant does to the method's cell ---------------------------------------------------------------------


def test_no_name_of_the_method_can_break_the_run(tree, made_of_mine, tmp_path, participant):
    kit = {node.name for node in ast.parse(kit_text(source_of("finetune"))).body if hasattr(node, "name")}
    names = sorted(kit | {"Path", "time", "torch_", "plan", "json", "copy", "multiprocessing", "SETTINGS"})
    taken = MINE + "\n".join(f"{name} = None" for name in names if name != "fine_tune") + "\n"
    run_alone(tmp_path, program_of(notebook_cells(source_of(participant(taken))), root=str(tree)))
    assert members(tmp_path / "out") == made_of_mine


# The run cell once, then the method's cell edited, to as many characters and within the same second.
EDITED = """
import os
from pathlib import Path

exec(run, space)
method = Path("unlearning_method.py")
second = int(method.stat().st_mtime)
method.write_text(method.read_text().replace("0.001", "0.002"))
os.utime(method, (second, second))
try:
    exec(run, space)
except ValueError as error:
    print("refused:", error)
exec(run.replace("Path('out')", "Path('new')"), space)
"""


def test_an_edited_method_is_refused_or_made_anew(tree, tmp_path, participant):
    *cells, (_, run) = notebook_cells(source_of(participant(MINE)))
    run = f"run = {with_settings(run, root=str(tree))!r}"
    printed = run_alone(tmp_path, "\n".join([program_of(cells), run, EDITED]))
    assert f"refused: {tmp_path}/out/ledger.jsonl: belongs to another run (source " in printed
    edited = participant(MINE.replace("0.001", "0.002"))
    (tmp_path / "package").mkdir()
    assert members(tmp_path / "new") == by_package(edited, tree, tmp_path / "package"), "no stale import"


def test_a_mistake_in_the_method_is_one_line_that_says_where(tree, tmp_path, participant):
    cells = notebook_cells(source_of(participant(MINE)))
    cells = [(kind, text.replace("AMOUNT = 0.001", "AMOUNT = 1 / 0")) for kind, text in cells]
    last = run_alone(tmp_path, program_of(cells, root=str(tree)), refused=True)
    assert last.endswith("InputError: unlearning_method.py, line 4: ZeroDivisionError: division by zero")
