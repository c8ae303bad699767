"""Where models are made: devices by name, and how many processes share one."""

import pytest
import torch

from kit.device import n_cores
from kit.errors import InputError
from local_eval import devices
from local_eval.__main__ import main
from local_eval.devices import best_slots, devices_of, hidden_cuda, summed_speed, while_it_pays
from local_eval.pool import ModelPool
from local_eval.setting import Setting, open_workspace

SETTING = Setting("digits", "random:30", n_train=300, architecture="tinyconv", epochs=1, n_retain_sample=100)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return open_workspace(SETTING, tmp_path_factory.mktemp("runs"))


def test_on_the_cpu_there_is_a_process_a_core():
    assert devices_of("cpu") == ["cpu"] * n_cores()
    assert devices_of("cpu", 3) == ["cpu"] * 3
    with pytest.raises(InputError, match="device 'warp'"):
        devices_of("warp")


def test_every_gpu_gets_as_many_processes(monkeypatch, workspace):
    monkeypatch.setattr(devices, "choose_device", torch.device)
    monkeypatch.setattr(devices, "accelerators", lambda: ["cuda:0", "cuda:1"])
    monkeypatch.setattr(devices, "best_slots", lambda workspace, device: 3)
    assert devices_of("cuda", 2) == ["cuda:0", "cuda:1"] * 2
    assert devices_of("cuda:1", 2) == ["cuda:1"] * 2
    assert devices_of("cuda") == devices_of("cuda", None, workspace, 7) == ["cuda:0", "cuda:1"], "too few to measure"
    assert devices_of("cuda", None, workspace, 8) == ["cuda:0", "cuda:1"] * 3


@pytest.mark.parametrize(
    ("speeds", "slots"), [([5, 5], 1), ([5, 9, 10], 2), ([1, 2, 4, 0], 4), ([1, 2, 4, 8, 16], 16), ([1, 1.15, 1], 2)]
)
def test_processes_are_doubled_for_as_long_as_that_pays(speeds, slots):
    asked = []

    def speed(n):
        asked.append(n)
        return speeds[len(asked) - 1]

    assert while_it_pays(speed) == slots
    assert asked == [1, 2, 4, 8, 16][: len(asked)]


def test_the_best_number_is_measured_once_and_written_down(workspace, monkeypatch):
    calls = []
    monkeypatch.setattr(devices, "summed_speed", lambda setup, device, slots: calls.append(slots) or float(slots < 3))
    assert best_slots(workspace, "other") == best_slots(workspace, "other") == 1
    assert calls == [1, 2]
    path = workspace.folder / "slots on other.txt"
    assert path.read_text() == "1\n"
    path.write_text("many")
    assert best_slots(workspace, "other") == 1
    assert calls == [1, 2, 1, 2]


def test_training_speed_is_that_of_all_processes_at_once(workspace, monkeypatch):
    monkeypatch.setattr(devices, "_MEASURED_S", 0.2)
    measure = devices.partial(devices._passes_on, workspace.folder)
    assert summed_speed(measure, "cpu", 1) > 0
    assert summed_speed(measure, "cpu", 2) > 0


def told_when(slots, device):
    """Its second job gives 1 where all processes had begun by then."""

    def job(told):
        return float(told.number >= slots)

    return job


def too_large(slots, device):
    if slots > 1:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    return lambda job: 1.0


def test_none_is_measured_before_all_are_ready_and_what_does_not_fit_is_slow():
    assert summed_speed(told_when, "cpu", 3) == 3.0
    assert summed_speed(too_large, "cpu", 2) == 0.0
    assert while_it_pays(devices.partial(summed_speed, too_large, "cpu")) == 1


TWICE = """
import torch
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

def unlearning(net, retain_loader, forget_loader, val_loader, by=1.0):
    device = f"cuda:{torch.cuda.device_count() - 1}" if torch.cuda.is_available() else "cpu"
    for batch in retain_loader:
        net.to(DEVICE)(batch["image"].to(device).float())
    net.fc.bias.data += by * torch.randn(10, device=device)
"""


@pytest.mark.parametrize("command", [["run", "--no-page"], ["sweep", "--set", "by=0.5,1.0"]])
def test_a_method_that_looks_for_a_gpu_finds_none_beside_nets_on_the_cpu(tmp_path, monkeypatch, command):
    """As if there were one: what is moved there fails, as this torch has no CUDA or no card of this number."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: asked.append(1) or True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 100)
    (tmp_path / "twice.py").write_text(TWICE)
    words = ["--source", "digits", "--n-train", "100", "--forget", "random:10", "--architecture", "tinyconv"]
    words += ["--epochs", "1", "--work-dir", str(tmp_path / "runs"), "--method", str(tmp_path / "twice.py"), "--quiet"]
    assert main([*command, *words, "--n-models", "2", "--device", "cpu", "--slots", "1"]) == 0
    (pool, *_) = (tmp_path / "runs").glob("*/twice-*")
    assert len(ModelPool.open(pool)) == 2
    assert torch.cuda.is_available() and torch.cuda.device_count() == 100  # outside it is found again


def test_cuda_is_hidden_beside_the_cpu_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device, found in (("cpu", False), ("cuda:0", True)):
        with hidden_cuda(device):
            assert torch.cuda.is_available() == found
    with pytest.raises(RuntimeError), hidden_cuda("cpu"):
        raise RuntimeError
    assert torch.cuda.is_available()
