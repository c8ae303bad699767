"""Passes within passes, and why a checkpoint is the original or no number: what a dry run saw of each run."""

import ast
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kit.tools.verify import Check
from local_eval.dry_run import run, verdict
from local_eval.dry_run.causes import with_causes
from local_eval.dry_run.judge import dry_run
from local_eval.dry_run.program import Code, read_program
from local_eval.dry_run.projection import EPOCH_S, HIDDEN, project
from notebooks.submission import KIT_MODULE

sys.path.insert(0, str(Path(run.__file__).parent / "inside"))
from _dry_run.kept import NAME, Loops

HEAD = """\
import copy, io, itertools, torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

def loader(n, batch_size=8):
    images, labels = torch.rand(n, 3, 8, 8) * 255, torch.randint(10, (n,))
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size, shuffle=True)

retain, forget = loader(64), loader(16)
net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
original = copy.deepcopy(net.state_dict())

def step(net, optimizer, *batches):
    optimizer.zero_grad()
    sum(nn.functional.cross_entropy(net(x), y) for x, y in batches).backward()
    optimizer.step()

def sgd(net, lr=0.01):
    net.train()
    return optim.SGD(net.parameters(), lr=lr)

def save(i):
    torch.save(net.state_dict(), f"/kaggle/tmp/unlearned_checkpoint_{i}.pth")
    net.load_state_dict(original)
"""
RUNS = {  # what happens between two checkpoints
    "one pass": "for a in retain: step(net, optimizer, a)",
    "nested": "for a in retain:\n    for b in forget: step(net, optimizer, a, b)",
    "nested, the outer loader has one batch": (
        "for b in loader(16, 64):\n    for a in retain: step(net, optimizer, a, b)"
    ),
    "pairs by itertools": "for a, b in itertools.product(retain, forget): step(net, optimizer, a, b)",
    "pairs with a kept list": ("kept = list(forget)\nfor a in retain:\n    for b in kept: step(net, optimizer, a, b)"),
    "pairs in a comprehension": "kept = list(forget)\n[step(net, optimizer, a, b) for a in retain for b in kept]",
    "kept lists side by side": (
        "kept = list(forget)\nfor a, b in zip(retain, itertools.cycle(kept)): step(net, optimizer, a, b)"
    ),
    "the parts of each batch": "for a in retain:\n    for part in a: step(net, optimizer, a)",
    "the one batch of a loader as an argument": "for a in loader(16, 64): step(net, optimizer, a)",
    "a few kept batches": (
        "kept = list(itertools.islice(retain, 3))\nfor b in forget:\n    for a in kept: step(net, optimizer, a, b)"
    ),
    "an accuracy after each batch": (
        "for a in retain:\n    step(net, optimizer, a)\n    with torch.no_grad():\n        [net(x) for x, y in forget]"
    ),
    "side by side": "for a, b in zip(retain, itertools.cycle(forget)): step(net, optimizer, a, b)",
    "pairs that end with the forget set": "for b, a in zip(forget, loader(64, 16)): step(net, optimizer, a, b)",
    "large batches": "for a in loader(64, 32): step(net, optimizer, a)",
    "an iterator that is begun again, of one batch": (
        "small = loader(8)\nit = iter(small)\nfor epoch in range(2):\n    for a in retain:\n        if epoch == 0:\n"
        "            try: b = next(it)\n            except StopIteration:\n                it = iter(small)\n"
        "                b = next(it)\n        step(net, optimizer, a, b)"
    ),
    "an iterator that is left open": "it = iter(forget); next(it)\nfor a in retain: step(net, optimizer, a)",
    "the first batch of another": "for a in retain:\n    for b in forget: break\n    step(net, optimizer, a, b)",
    "one evaluation": (
        "for i, a in enumerate(retain):\n    step(net, optimizer, a)\n    if i == 0:\n"
        "        for b in forget: net(b[0])"
    ),
    "nothing": "pass",
    "swallowed": "try:\n    for a, b, c in retain: step(net, optimizer, a)\nexcept Exception: pass",
    "another net": (
        "other = copy.deepcopy(net)\noptimizer = sgd(other)\nfor a in retain: step(other, optimizer, a)\ndel other"
    ),
    "a rate of 0": "optimizer = sgd(net, 0.0)\nnet.eval()\nfor a in retain: step(net, optimizer, a)",
    "diverging": (
        "for i, a in enumerate(retain):\n    if i == 3: optimizer.param_groups[0]['lr'] = float('inf')\n"
        "    step(net, optimizer, a)"
    ),
    "diverging statistics": (
        "for i, a in enumerate(retain):\n    step(net, optimizer, a)\n"
        "    if i == 3: net[1].running_var.fill_(float('inf'))"
    ),
    "a rehearsal": (
        "torch.save(net.state_dict(), io.BytesIO())\nfor a in retain: step(net, optimizer, a)\n"
        "torch.save(net.state_dict(), file := io.BytesIO())\n"
        "open('/kaggle/tmp/unlearned_checkpoint_NUMBER.pth', 'wb').write(file.getvalue())"
    ),
}


def numbered(name):
    return list(RUNS).index(name)


@pytest.fixture(scope="module")
def watched(tiny, tmp_path_factory):
    """One program that makes a checkpoint in each of these ways."""
    parts = [HEAD]
    for number, (name, text) in enumerate(RUNS.items()):
        text = text.replace("NUMBER", str(number))
        parts.append(f"optimizer = sgd(net)\n{text}" + ("" if name == "a rehearsal" else f"\nsave({number})"))
    path = tmp_path_factory.mktemp("watched") / "runs.py"
    path.write_text("\n".join(parts))
    return dry_run(read_program(path), tiny, len(RUNS), timeout_s=600, namespaces=False, progress=False)


def save_of(watched, name):
    return watched.outcome.saves[numbered(name)]


def test_a_saving_without_a_file_is_no_checkpoint(watched):
    outcome = watched.outcome
    assert outcome.fault is None, outcome.output
    assert len(outcome.saves) == len(RUNS)
    assert len(outcome.of("save")) == len(RUNS) + 1
    assert save_of(watched, "a rehearsal")["path"].endswith(f"unlearned_checkpoint_{numbered('a rehearsal')}.pth")


def test_passes_within_each_batch_of_another_loader_are_seen_and_others_are_not(watched):
    def laws(name):
        return {(tuple(pair["outer"]), tuple(pair["inner"])) for pair in save_of(watched, name)["nested"]}

    found = {name: laws(name) for name in RUNS if laws(name)}
    assert found == {
        "nested": {((64, 8), (16, 8))},
        "pairs by itertools": {((64, 8), (16, 8))},
        "pairs with a kept list": {((64, 8), (16, 8))},
        "pairs in a comprehension": {((64, 8), (16, 8))},
        "nested, the outer loader has one batch": {((16, 64), (64, 8))},
        "an accuracy after each batch": {((64, 8), (16, 8))},
    }
    assert sum(pair["seen"]["trained"] for pair in save_of(watched, "nested")["nested"]) == 8 * 2 * 16
    assert sum(pair["seen"]["evaluated"] for pair in save_of(watched, "an accuracy after each batch")["nested"]) == 128


def test_loops_over_kept_batches_are_watched_where_they_stand():
    text = """\
for n, b in enumerate(batches):
    for c in tqdm.tqdm(other.batches, desc="x"):
        for _ in range(2):
            print(n, b, c)
"""
    kept = Loops().visit(ast.parse(text))
    assert ast.unparse(kept) == text.strip().replace("batches)", f"{NAME}(batches))").replace(
        "other.batches,", f"{NAME}(other.batches),"
    ).replace('"', "'")
    plain = [node.lineno for node in ast.walk(ast.parse(text)) if isinstance(node, ast.For)]
    assert [node.lineno for node in ast.walk(kept) if isinstance(node, ast.For)] == plain
    compile(kept, "cell", "exec")


def test_the_law_of_nested_passes_and_what_it_makes_of_the_time(watched, tiny):
    def projected(name):
        event = save_of(watched, name)
        twice = [{**event, "event": "save", "t": t, "pid": 1} for t in (1.0, 2.0)]
        return project(replace(watched.outcome, events=tuple(twice), start_s=0.0, end_s=2.0), tiny.sizes, 2)

    plain, pairs = projected("one pass"), projected("nested")
    assert (plain.law, pairs.law) == ("", "retain x forget")
    assert plain.epochs == pytest.approx(1.0)
    n_pairs = -(-HIDDEN["retain"] // 8) * -(-HIDDEN["forget"] // 8)
    assert pairs.epochs == pytest.approx(n_pairs * 16 / HIDDEN["retain"])  # 16 images in each pair of batches
    check = verdict.time_check(pairs)
    assert not check.ok
    assert "it grows with retain x forget" in check.found
    assert projected("side by side").epochs < 3


def test_what_is_drawn_and_in_which_batches_makes_the_time(watched, tiny):
    """A pass that ends with another loader grows with that one's data; half of an epoch's time is one of steps."""

    def projected(name):
        event = save_of(watched, name)
        twice = [{**event, "event": "save", "t": t, "pid": 1, "seconds": 0.0} for t in (1.0, 2.0)]
        outcome = replace(watched.outcome, events=tuple(twice), start_s=0.0, end_s=2.0)
        return project(outcome, {"retain": 64, "forget": 16}, 2).on["P100"] / 512

    assert save_of(watched, "pairs that end with the forget set")["drawn"] == [[16, 8, 16], [16, 16, 32]]
    one = projected("one pass")
    assert projected("large batches") == pytest.approx(one - EPOCH_S["P100"] / 2 * (64 / 8 - 64 / 32), rel=0.01)
    assert projected("pairs that end with the forget set") < 0.2 * one
    assert projected("side by side") > one


def told_of(watched, name, check="all different", found="equals the original model"):
    member = f"kaggle/tmp/unlearned_checkpoint_{numbered(name)}.pth"
    return with_causes([Check(check, False, f"{member} {found}", "mend")], watched.outcome)[0]


def test_why_a_checkpoint_equals_the_original(watched):
    swallowed, other = told_of(watched, "swallowed"), told_of(watched, "another net")
    assert "nothing was trained: no step of an optimiser, no forward pass in training mode" in swallowed.found
    assert re.search(r"an exception is swallowed at line \d+: except Exception: pass", swallowed.remedy)
    assert "8 steps of an optimiser changed another net than the one that was saved" in other.found
    assert "the net that the function trained or returned" in other.remedy
    assert "8 steps of an optimiser left the weights as they were" in told_of(watched, "a rate of 0").found
    assert "nothing was trained" in told_of(watched, "nothing").found


def test_where_all_equal_the_original_the_steps_before_the_first_run_are_not_blamed(watched):
    saves = [save_of(watched, name) for name in ("another net", "nothing", "nothing")]
    outcome = replace(watched.outcome, events=tuple(saves))
    first = f"kaggle/tmp/unlearned_checkpoint_{numbered('another net')}.pth equals the original model"

    def told(n_more):
        return with_causes([Check("all different", False, f"{first} (and {n_more} more)", "mend")], outcome)[0]

    assert "(and 2 more): in the last run nothing was trained: no step of an optimiser" in told(2).found
    assert "8 steps of an optimiser changed another net" in told(1).found


def test_an_exception_that_the_kit_itself_catches_is_not_blamed(watched):
    text = "try:\n    work()\nexcept TypeError:\n    pass\n"
    kit, own = (Code(number, text) for number in (1, 2))
    kit = replace(kit, text=f"%%writefile {KIT_MODULE}.py\n{text}")

    def remedy(*codes):
        outcome = replace(watched.outcome, program=replace(watched.outcome.program, codes=codes))
        return told_of(replace(watched, outcome=outcome), "nothing").remedy

    assert remedy(kit) == "look whether an exception is swallowed, or the training is skipped"
    assert "is swallowed at cell 2, line 3: except TypeError:" in remedy(kit, own)


@pytest.mark.parametrize(("name", "step"), [("diverging", 4), ("diverging statistics", 5)])
def test_when_the_first_nan_came(watched, name, step):
    told = told_of(watched, name, "tensors", "fc.weight has NaN or infinite values").found
    came = f"the first NaN of run {numbered(name)} came with step {step} of 8"
    assert re.search(rf"{came} at line \d+: optimizer.step\(\)$", told), told
    told = told_of(watched, "one pass", "tensors", "fc.weight has NaN or infinite values").found
    assert told.endswith("no step of an optimiser in run 0 made it")


@pytest.mark.parametrize("namespaces", [True, False])
def test_a_script_runs_as_python_runs_one(tiny, tmp_path, namespaces):
    """Its own name, arguments, folder of modules, worker processes and traceback; its modules' loops are watched."""
    path = tmp_path / "program.py"
    text = HEAD + (
        "import multiprocessing, os, sys\n"
        "def square(x):\n    return x * x\n"
        "if __name__ == '__main__':\n"
        "    os.mkdir('/kaggle/tmp')\n"
        "    assert sys.argv == [__file__] and sys.modules['__main__'].square is square\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        assert pool.map(square, [3]) == [9]\n"
        "    with open('/kaggle/src/pairs.py', 'w') as file:\n"
        "        file.write('def train(step, outer, kept):\\n for a in outer:\\n  for b in kept: step(a, b)')\n"
        "    from pairs import train\n"
        "    optimizer = sgd(net)\n"
        "    train(lambda a, b: step(net, optimizer, a, b), retain, list(forget))\n"
        "    save(0)\n"
        "    raise RuntimeError('the end')\n"
    )
    path.write_text(text)
    outcome = dry_run(read_program(path), tiny, 1, timeout_s=600, namespaces=namespaces, progress=False).outcome
    n_lines = text.count("\n")
    assert (outcome.fault.message, outcome.fault.where) == (
        "RuntimeError: the end",
        f"line {n_lines}: raise RuntimeError('the end')",
    )
    assert sum(line.startswith("  File ") for line in outcome.output) == 1
    assert not outcome.of("unmade")
    assert {tuple(map(tuple, (pair["outer"], pair["inner"]))) for pair in outcome.saves[0]["nested"]} == {
        ((64, 8), (16, 8))
    }


def test_a_script_that_is_no_python_is_told_as_python_tells_it(tiny, tmp_path):
    path = tmp_path / "program.py"
    path.write_text("import os\nprint(1 +)\n")
    outcome = dry_run(read_program(path), tiny, 1, timeout_s=600, namespaces=False, progress=False).outcome
    assert (outcome.fault.message, outcome.fault.where) == ("SyntaxError: invalid syntax", "line 2: print(1 +)")
    told = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False).stderr.splitlines()
    assert [line for line in outcome.output if "program.py" not in line] == told[1:]


@pytest.mark.parametrize("namespaces", [True, False])
@pytest.mark.parametrize(
    ("made", "told"),
    [
        ("os.makedirs('/kaggle/tmp', exist_ok=True)", False),
        ("os.mkdir('/kaggle/tmp')", False),
        ("os.path.isdir('/kaggle/tmp') or os.mkdir('/kaggle/tmp')", False),
        ("os.system('mkdir -p /kaggle/tmp')", False),
        ("import pathlib; pathlib.Path('/kaggle/tmp/runs').mkdir(parents=True)", False),
        ("pass", True),
        ("os.chdir('/kaggle/tmp'); os.chdir('/kaggle/working')", True),
        ("os.system('touch /kaggle/tmp/unlearned_checkpoint_0.pth')", True),
    ],
)
def test_whether_kaggle_has_its_folder_for_files_is_not_known(tiny, tmp_path, made, told, namespaces):
    path = tmp_path / "program.py"
    path.write_text(HEAD + f"import os\n{made}\nsave(0)\n")
    result = dry_run(read_program(path), tiny, 1, timeout_s=600, namespaces=namespaces, progress=False)
    assert result.outcome.fault is None, result.outcome.output
    check = next(check for check in result.checks if check.name == "/kaggle/tmp")
    assert check.ok
    assert ("the folder is used at line" in check.found) is told, check
    assert ("exist_ok=True" in check.remedy) is told
