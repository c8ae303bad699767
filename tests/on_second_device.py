"""What runs on a GPU, on a device that needs no hardware. Run in a process of its own by test_second_device.py."""

import inspect
import json

import pytest
import torch

import data_stubs
from data_stubs.kaggle_tree import write_tree
from kit.budget import TimeBudget
from kit.checkpoint import unlearn_once
from kit.competition import TensorLoader, make_loaders, resnet18
from kit.device import device_of, peak_bytes
from kit.emit import emit
from kit.methods import get_method, method_names, method_of
from kit.submit import submit
from kit.tools import verify as checking
from kit.tools.profile import profile
from kit.tools.verify import verify
from local_eval.models import tinyconv
from tests.conftest import dataset
from tests.second_device import CALLS, register

DEVICE = f"{register()}:0"
QUICK = {"ssse": ["n_gradients=4", "size=2", "eps=0.001"]}


def quick(name):
    """One epoch where a method has any: what is asked is where its tensors lie."""
    has_epochs = get_method(name).settings.get("epochs", 0) > 1
    return get_method(name, [*QUICK.get(name, []), *(["epochs=1"] if has_epochs else [])])


def problem(device, anytime=True):
    register()
    torch.manual_seed(0)
    parts = (dataset(50, 1), dataset(20, 2), dataset(20, 3))
    loader = TensorLoader if anytime else torch.utils.data.DataLoader
    parts = [part.to(device) for part in parts] if anytime else parts
    return tinyconv().eval().to(device), make_loaders(*parts, batch_size=8, loader=loader)


def emitted(method, out, n=2, **options):
    model, loaders = problem(DEVICE, method.anytime)
    result = emit(method, model, loaders, out=out, n_checkpoints=n, progress=False, **options)
    assert all(tensor.device.type == "other" for tensor in model.state_dict().values())
    return result


@pytest.mark.parametrize("name", method_names())
def test_every_method_emits_a_sound_archive(name, tmp_path):
    result = emitted(quick(name), tmp_path, budget=TimeBudget("2m"))
    checks = verify(result.archive, 2, problem(DEVICE)[0].state_dict())
    failed = [check.name for check in checks if not check.ok]
    assert failed == (["all different"] if name == "do_nothing" else []), checks
    assert len(checks) == 4
    assert len(result.faults) == len(failed)


@pytest.mark.parametrize("name", ["finetune", "random_perturbation", "negative_gradient"])
def test_the_weights_are_those_of_the_cpu(name):
    method = get_method(name)
    states = [unlearn_once(method, *problem(device), seed=3, index=1)[0].state_dict() for device in ("cpu", DEVICE)]
    for entry, tensor in states[0].items():
        assert torch.allclose(tensor.float(), states[1][entry].cpu().float(), atol=1e-5), entry


def starter_style(net, retain, forget, validation):
    """A participant's function that asks the net where it lies."""
    device, optimizer = device_of(net), torch.optim.Adam(net.parameters(), lr=1e-3)
    net.train()
    for batch in retain:
        optimizer.zero_grad()
        images, labels = batch["image"].to(device), batch["age_group"].to(device)
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()


def test_a_participants_function_gets_its_batches_on_the_cpu(tmp_path):
    assert emitted(method_of(starter_style), tmp_path).faults == []


def test_float16_and_copies_of_the_original(tmp_path):
    assert emitted(get_method("finetune"), tmp_path / "a", dtype=torch.float16).faults == []
    model, _ = problem(DEVICE)
    copies = emitted(get_method("do_nothing"), tmp_path / "b").archive
    assert "equals the original" in verify(copies, 2, model.state_dict())[-1].found


def test_several_processes_give_the_same_archive(tmp_path):
    whole = emitted(get_method("finetune"), tmp_path / "one").archive.read_bytes()
    model, loaders = problem("cpu")
    options = {"out": tmp_path / "two", "n_checkpoints": 2, "devices": [DEVICE] * 2, "problem": problem}
    assert emit(get_method("finetune"), model, loaders, progress=False, **options).archive.read_bytes() == whole


def test_memory_that_runs_out_is_given_back_and_tried_again(tmp_path):
    calls = []

    def hungry(net, retain, forget, validation):
        calls.append(None)
        if len(calls) == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        with torch.no_grad():
            net.fc.bias += torch.randn(10).to(net.fc.bias.device)

    before = CALLS["empty_cache"]
    assert emitted(method_of(hungry), tmp_path).faults == []
    assert (len(calls), CALLS["empty_cache"]) == (3, before + 1)


def test_a_profile(tmp_path):
    before = CALLS["synchronize"]
    found = profile(get_method("finetune"), *problem(DEVICE), n_measured=2, out=tmp_path, progress=False)
    assert found.memory_bytes == peak_bytes(DEVICE) == 123_000_000
    assert CALLS["synchronize"] > before
    assert found.lines()


def test_a_submission(tmp_path):
    splits = data_stubs.load("digits", forget="random:8", n_train=40)
    torch.manual_seed(0)
    root = write_tree(splits, resnet18().state_dict(), tmp_path / "tree")
    (tmp_path / "out").mkdir()
    common = {"root": root, "out": tmp_path / "out", "n_checkpoints": 2, "limit": "5m", "progress": False}
    archive = submit(get_method("negative_gradient").function, devices=[DEVICE], work=tmp_path / "tmp", **common)
    start = json.loads((tmp_path / "out/ledger.jsonl").read_text().splitlines()[0])
    assert start["device"] == "other"
    assert archive.exists()


def test_a_mistake_with_devices_is_noticed(tmp_path, monkeypatch):
    """The check of an archive as it once was: it compared with the original where that lay."""
    lines = inspect.getsource(checking.check_tensors)
    once = lines.replace("tensor.detach().cpu()", "tensor.detach()")
    assert once != lines
    exec(compile(once, checking.__file__, "exec"), vars(checking), faulty := {})
    monkeypatch.setattr("kit.tools.verify.check_tensors", faulty["check_tensors"])
    with pytest.raises(RuntimeError, match="same device"):
        verify(emitted(get_method("finetune"), tmp_path).archive, 2, problem(DEVICE)[0].state_dict())


def test_a_setting_is_trained_retrained_unlearned_and_scored(tmp_path):
    from local_eval.evaluate import evaluate, read_samples
    from local_eval.retrained import fill_retrained
    from local_eval.setting import Setting, open_workspace
    from local_eval.unlearned import fill_unlearned

    setting = Setting("digits", forget="random:20", n_train=200, architecture="tinyconv", epochs=4)
    workspace = open_workspace(setting, tmp_path)
    fill_retrained(workspace, 4, devices=[DEVICE], progress=False)
    for method in map(get_method, ("finetune", "random_perturbation")):
        pool = fill_unlearned(workspace, method, 4, devices=[DEVICE], progress=False)
        rows = evaluate(read_samples(workspace, {method.name: pool}, 4))
        assert 0 <= rows[0].score <= 1
        assert rows[0].retain_accuracy > 0.2


@pytest.mark.parametrize("recipe", ["fast", "sgd", "competition"])
def test_every_recipe_trains(recipe, tmp_path):
    from local_eval.retrained import fill_retrained
    from local_eval.setting import Setting, open_workspace

    setting = Setting("digits", forget="random:20", n_train=120, architecture="tinyconv", recipe=recipe, epochs=1)
    pool = fill_retrained(open_workspace(setting, tmp_path), 1, devices=[DEVICE], progress=False)
    assert pool.missing(1) == []
