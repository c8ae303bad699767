"""Checkpoints made by several processes, some of which die or hang. What they call is called by name."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from kit.errors import InputError
from kit.making import Maker
from kit.workers import Processes
from local_eval.models import tinyconv
from tests.conftest import dataset
from tests.test_kit_emit import FINETUNE, ledger_of, members, run


def _maker(seed, method, device):
    torch.manual_seed(0)
    from kit.competition import TensorLoader, make_loaders

    loaders = make_loaders(dataset(50, 1), dataset(20, 2), dataset(20, 3), batch_size=8, loader=TensorLoader)
    return Maker(method, tinyconv().eval(), loaders, seed)


def _once(folder, index):
    """True the first time it is asked for an index, in whichever process."""
    try:
        (Path(folder) / f"{index}").touch(exist_ok=False)
        return True
    except FileExistsError:
        return False


class _Unreliable:
    """A maker that dies or hangs at some checkpoints, once or always."""

    def __init__(self, maker, folder, dies, hangs, always):
        self.maker, self.folder, self.dies, self.hangs, self.always = maker, folder, dies, hangs, always

    def __call__(self, task):
        if not task.why and (self.always or _once(self.folder, task.index)):
            if task.index in self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            if task.index in self.hangs:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # as code that never returns to Python
                time.sleep(600)
        return self.maker(task)


def _unreliable(folder, dies, hangs, always, device):
    return _Unreliable(_maker(0, FINETUNE, device), folder, dies, hangs, always)


def in_processes(model, loaders, out, tmp_path, *, dies=(), hangs=(), always=False, n=6, **options):
    folder = tmp_path / "marks"
    folder.mkdir()
    with Processes(partial(_unreliable, folder, dies, hangs, always), ["cpu"] * 2, patience_s=6.0) as crew:
        return run(model, loaders, out, n=n, crew=crew, **options)


def test_two_processes_write_the_bytes_of_one_though_one_dies_and_one_hangs(model, loaders, tmp_path):
    whole = members(run(model, loaders, tmp_path / "whole", n=6).archive)
    result = in_processes(model, loaders, tmp_path / "out", tmp_path, dies={1}, hangs={4})
    assert members(result.archive) == whole
    lost = [line for line in ledger_of(tmp_path / "out") if line["event"] == "lost"]
    assert {line["index"] for line in lost} == {1, 4}
    assert any("SIGKILL" in line["reason"] for line in lost)
    assert any("hung" in line["reason"] for line in lost)
    assert result.stood_in == 0


def test_a_checkpoint_that_kills_its_process_each_time_is_made_by_the_faster_recipe(model, loaders, tmp_path):
    result = in_processes(model, loaders, tmp_path / "out", tmp_path, dies={3}, always=True, n=5)
    assert (result.stood_in, result.why) == (1, "its worker died or hung each time")


def test_processes_that_always_die_stop_the_run(model, loaders, tmp_path):
    with pytest.raises(InputError, match=r"SIGKILL.*3 times, and none is made"):
        in_processes(model, loaders, tmp_path / "out", tmp_path, dies=set(range(9)), always=True)


def _ends(device):
    os._exit(1)


def test_processes_that_end_before_they_begin_stop_the_run(model, loaders, tmp_path):
    with (
        Processes(_ends, ["cpu"] * 2) as crew,
        pytest.raises(InputError, match=r"exit code 1\), 3 times, and none is made: the reason is printed above"),
    ):
        run(model, loaders, tmp_path, crew=crew)


def _broken_setup(device):
    raise InputError("no data here")


def test_a_process_that_cannot_begin_tells_why(model, loaders, tmp_path):
    with Processes(_broken_setup, ["cpu"] * 2) as crew, pytest.raises(InputError, match="no data here"):
        run(model, loaders, tmp_path, crew=crew)
