"""The real command line, stopped by signals or given data that break: what is finished is kept and continued."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kit.__main__ import main
from kit.budget import TimeBudget
from kit.competition import load_original, read_tree
from kit.emit import emit
from kit.methods import get_method
from local_eval.models import tinyconv
from tests.test_kit_emit import members

ROOT = Path(__file__).parents[1]


def command(tree, out, *options):
    architecture = ["--architecture", f"{tree.parent / 'net.py'}:net"]
    tail = ["--out", str(out), "--quiet", "--device", "cpu", "--slots", "1", *architecture, *map(str, options)]
    return [sys.executable, "-m", "kit", "emit", "--input", str(tree), *tail]


N_MODELS = 20
HOLDING = """
import time
from pathlib import Path

from kit.plan import planned_steps
from kit.training import fine_tune

hold, calls = Path(__file__).with_name("hold"), []

def unlearning(net, retain, forget, val, *, seed, plan=None):
    calls.append(seed)
    while len(calls) > 13 and hold.exists():  # three of them are measurements
        time.sleep(0.01)
    fine_tune(net, retain, planned_steps(plan, 12), lr=0.001)
"""


@pytest.fixture(scope="module")
def holding(tmp_path_factory):
    """A method's file that makes ten checkpoints and no more as long as there is a file `hold` beside it."""
    path = tmp_path_factory.mktemp("holding") / "holding.py"
    path.write_text(HOLDING)
    return path


@pytest.fixture(scope="module")
def whole(tree, holding, tmp_path_factory):
    """The members of an archive whose run was not interrupted."""
    loaders, out = read_tree(tree, progress=False, device="cpu"), tmp_path_factory.mktemp("whole")
    options = {"n_checkpoints": N_MODELS, "budget": TimeBudget("8h"), "progress": False}
    method = get_method(str(holding))
    return members(emit(method, load_original(tree, tinyconv), loaders, out=out, **options).archive)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_signal_ends_the_run_and_the_same_command_continues(tree, whole, holding, tmp_path, number, code):
    arguments = command(tree, tmp_path / "out", "--n-models", N_MODELS, "--method", holding)
    (hold := holding.with_name("hold")).touch()
    started = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ledger = tmp_path / "out/ledger.jsonl"
    while started.poll() is None and (not ledger.exists() or ledger.read_text().count('"crc32"') < 4):
        time.sleep(0.01)
    started.send_signal(number)
    out, err = started.communicate(timeout=120)
    hold.unlink()
    assert (started.returncode, out) == (code, "")
    assert err == ("interrupted: what is finished is kept; the same command continues\n" if code > 0 else "")
    assert not (tmp_path / "out/submission.zip").exists()
    n_kept = ledger.read_text().count('"crc32"')
    assert 3 <= n_kept <= 10
    assert main(arguments[3:]) == 0
    assert members(tmp_path / "out/submission.zip") == whole
    assert sum(json.loads(line)["event"] == "start" for line in ledger.read_text().splitlines()) == 1


def test_the_command_line_writes_the_same_archive_with_one_process_and_with_two(tree, tmp_path, capsys):
    for slots in ("1", "2"):
        arguments = command(tree, tmp_path / slots, "--n-models", 4, "--slots", slots, "--dtype", "float16")
        assert main(arguments[3:]) == 0
        assert capsys.readouterr().err == ""
    assert (tmp_path / "1/submission.zip").read_bytes() == (tmp_path / "2/submission.zip").read_bytes()


def test_a_data_file_that_breaks_is_told_before_anything_is_written(tree, tmp_path, capsys):
    broken = tmp_path / "tree"
    shutil.copytree(tree, broken)
    image = sorted((broken / "images").rglob("*.png"))[100]
    image.write_bytes(image.read_bytes()[:60])
    arguments = command(broken, tmp_path / "out", "--architecture", f"{tree.parent / 'net.py'}:net")
    assert main(arguments[3:]) == 2
    err = capsys.readouterr().err
    assert image.name in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_method_that_ignores_its_alarm_ends_with_a_line(tree, tmp_path):
    """In one process nobody else can end it: after half a minute, here after two rings, it ends itself."""
    (tmp_path / "deaf.py").write_text(
        "import time\nfrom kit import budget\nbudget._MOST_RINGS = 2\n"
        "def unlearning(net, a, b, c):\n"
        "    while True:\n"
        "        try:\n            time.sleep(0.05)\n"
        "        except:\n            pass\n"
    )
    options = ["--method", tmp_path / "deaf.py", "--n-models", 500, "--limit", "250s"]
    done = subprocess.run(command(tree, tmp_path / "out", *options), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the method goes on after its time whatever it is told")
    assert done.stderr.count("\n") == 1
