"""The tests of on_second_device.py, in a process of their own: a device cannot be unregistered."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not hasattr(torch.utils, "backend_registration"), reason="needs torch's backends in Python")
def test_everything_runs_on_a_second_device():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/on_second_device.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
