"""What torch asks of CUDA is answered by the dry run's pretence, every optimiser's step included."""

import subprocess
import sys
from pathlib import Path


def test_everything_that_a_program_asks_of_cuda_is_answered():
    program = Path(__file__).with_name("pretended_cuda.py")
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", str(program)], capture_output=True, text=True, timeout=300, check=False
    )
    assert (ended.returncode, ended.stdout.strip()) == (0, ""), ended.stdout + ended.stderr[-2000:]
