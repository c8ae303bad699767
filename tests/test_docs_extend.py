"""docs/extend.md followed to the letter: its files written, its commands run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "extend.md").read_text()
FILES = dict(re.findall(r"Write `(mine/\w+\.py)`:\n\n```python\n(.*?)^```", TEXT, re.S | re.M))
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.S | re.M)
COMMANDS = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extend")
    (folder / "mine").mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def run(folder, command):
    words = [sys.executable, *shlex.split(command)[1:]]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=600)


def test_it_shows_all_six():
    assert len(FILES) == 6
    assert len(COMMANDS) >= 6
    assert all(any(name in command for command in COMMANDS) for name in FILES if "measure" not in name)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run_as_they_stand(folder, command):
    done = run(folder, command)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_measure_runs(folder):
    setting = next(path.parent for path in (folder / "runs").glob("*/retrained"))
    done = run(folder, f"python mine/measure.py {setting}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 <= float(done.stdout.split()[-1]) <= 1
