"""How a method is found by name or file, set, and told apart from what is none."""

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from kit.__main__ import main
from kit.checkpoint import unlearn_once
from kit.errors import InputError
from kit.methods import finetune, get_method

ROOT = Path(__file__).parents[1]


def test_settings_are_read_as_the_type_of_their_default():
    method = get_method("finetune", ["lr=0.004", "epochs=2"])
    assert method.settings == {
        "lr": 0.004,
        "epochs": 2.0,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "bfloat16": False,
    }


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        ("finetun", [], "did you mean finetune"),
        ("xyz", [], "unknown: known are amnesiacs, bad_teacher"),
        ("finetune", ["learning_rate=1"], "has no hyper-parameter 'learning_rate': it has epochs=1.0, lr="),
        ("finetune", ["lr=fast"], "expected float, such as 0.001"),
        ("finetune", ["lr"], "expected name=value"),
        ("do_nothing", ["lr=1"], "it has none"),
        ("nowhere/mine.py", [], "no such file"),
    ],
)
def test_mistakes_in_method_and_settings_are_told(spec, settings, message):
    with pytest.raises(InputError, match=message):
        get_method(spec, settings)


FOUR_ARGUMENTS = """
import torch
def unlearning(net, retain_loader, forget_loader, val_loader):
    with torch.no_grad():
        net.fc.bias += torch.randn(10)
def other(net, retain, forget, validation, strength=2, *, flag: bool = False):
    assert isinstance(strength, int) and flag is True
    net.fc.bias.data.fill_(strength)
    return net
"""


def test_a_participants_function_works_unchanged(model, loaders, participant):
    path = participant(FOUR_ARGUMENTS)
    method = get_method(path)
    assert not method.anytime
    assert method.loader is DataLoader
    first, _ = unlearn_once(method, model, loaders, seed=0, index=0)
    second, _ = unlearn_once(method, model, loaders, seed=0, index=1)
    assert not torch.equal(first.fc.bias, second.fc.bias)
    other = get_method(f"{path}:other", ["strength=3", "flag=true"])
    assert unlearn_once(other, model, loaders, seed=0, index=0)[0].fc.bias.tolist() == [3.0] * 10


ANY_ARGUMENTS = """
import os, sys
def logged(function):
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper
@logged
def unlearning(net, retain_loader, forget_loader, val_loader):
    net.fc.bias.data.fill_(2.0)
sys.path.pop(0)
os.chdir("/")
"""


def test_a_decorated_function_of_a_file_that_goes_elsewhere_works(model, loaders, participant, tmp_path, monkeypatch):
    participant(ANY_ARGUMENTS)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    method = get_method("mine.py")
    assert sys.path == before
    again = pickle.loads(pickle.dumps(method))
    assert again.identity == method.identity
    assert unlearn_once(again, model, loaders, seed=0, index=0)[0].fc.bias.tolist() == [2.0] * 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def unlearning(net, retain_loader): pass", "takes 2 arguments"),
        ("def unlearning(net, a, b, c, teacher): pass", "teacher has no default"),
        ("def forgetting(net, a, b, c): pass", "defines no function unlearning or unlearn"),
        ("x = 1\n1 / 0", "line 2: ZeroDivisionError"),
        ("def unlearning(net, a, b, c)\n    pass", "line 1: SyntaxError"),
        ("import not_a_module", "line 1: ModuleNotFoundError"),
    ],
)
def test_a_file_that_gives_no_method_is_told(participant, text, message):
    with pytest.raises(InputError, match=message):
        get_method(participant(text))


def test_an_exception_in_a_participants_function_is_told_with_its_line(model, loaders, participant):
    path = participant("def unlearning(net, a, b, c):\n    return net.no_such_layer\n")
    with pytest.raises(InputError, match=r"checkpoint 3 failed: AttributeError: .*no_such_layer.*py, line 2\)"):
        unlearn_once(get_method(path), model, loaders, seed=0, index=3)


def test_a_result_that_is_no_model_is_tried_again_and_then_told(model, loaders, participant):
    sometimes = """
import torch
calls = []
def unlearning(net, a, b, c):
    calls.append(1)
    net.fc.bias.data.fill_(float("nan") if len(calls) < 3 else torch.randn(()).item())
"""
    net, attempt = unlearn_once(get_method(participant(sometimes)), model, loaders, seed=0, index=0)
    assert attempt == 2
    assert torch.isfinite(net.fc.bias).all()
    always = "def unlearning(net, a, b, c):\n    net.fc.bias.data.fill_(float('inf'))\n"
    with pytest.raises(InputError, match=r"no model in 3 attempts \(fc.bias has NaN or infinite values\)"):
        unlearn_once(get_method(participant(always, "always.py")), model, loaders, seed=0, index=0)


def test_a_methods_identity_is_the_text_of_its_file():
    path = Path(finetune.__file__)
    assert get_method("finetune").source == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert get_method("finetune").identity != get_method("finetune", ["lr=0.5"]).identity


def test_an_identity_is_the_same_in_every_process(participant):
    defaults = ["1.0", "'cosine'", "(1, 2)", "None", "print", "lambda x: x", "object()", "{'a': [1]}"]
    text = "def unlearning(net, a, b, c, option={}): pass\n"
    paths = [participant(text.format(default), f"m{i}.py") for i, default in enumerate(defaults)]
    code = f"from kit.methods import get_method\nfor path in {paths}: print(get_method(path).identity)"
    told = {subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout for _ in "ab"}
    assert len(told) == 1
    (identities,) = told
    assert identities.count("\n") == len(defaults)
    assert "0x" not in identities


def test_a_method_says_all_that_its_file_says(capsys):
    assert main(["methods", "ssd"]) == 0
    out = capsys.readouterr().out
    assert "Foster, Schoepf and Brintrup 2024" in out
    assert "alpha = 1.0" in out
