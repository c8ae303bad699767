"""The contract that every method keeps, and how methods are found and set."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from kit.budget import Plan
from kit.competition import Loaders
from kit.emit import unlearn_once
from kit.errors import InputError
from kit.methods import get_method, method_names
from kit.submission import state_hash
from kit.surgery import add_noise
from local_eval.models import tinyconv

CHANGING = [name for name in method_names() if name != "do_nothing"]


def hash_of(name, model, loaders, seed=1, plan=None):
    torch.manual_seed(12345)  # whatever the generator's state before
    net, _ = unlearn_once(get_method(name), model, loaders, seed=seed, index=0, plan=plan)
    return state_hash(net.state_dict())


@pytest.mark.parametrize("name", method_names())
def test_it_keeps_names_shapes_and_types_and_leaves_nothing_behind(name, model, loaders):
    before = state_hash(model.state_dict())
    modules = [type(module) for module in model.modules()]
    net, _ = unlearn_once(get_method(name), model, loaders, seed=1, index=0)
    assert state_hash(model.state_dict()) == before, "the original was changed"
    assert [type(module) for module in net.modules()] == modules
    for key, tensor in model.state_dict().items():
        assert net.state_dict()[key].shape == tensor.shape
        assert net.state_dict()[key].dtype == tensor.dtype
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in net.modules())


@pytest.mark.parametrize("name", CHANGING)
def test_same_seed_same_bits_and_other_seeds_other_bits(name, model, loaders):
    first = hash_of(name, model, loaders)
    assert hash_of(name, model, loaders) == first
    assert hash_of(name, model, loaders, seed=2) != first
    assert first != state_hash(model.state_dict())


@pytest.mark.parametrize("name", CHANGING)
def test_a_direct_call_depends_on_its_seed_alone(name, model, loaders):
    states = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        net = get_method(name)(copy.deepcopy(model), loaders, seed=7)
        states.append(state_hash(net.state_dict()))
    assert states[0] == states[1]


@pytest.mark.parametrize("name", method_names())
def test_it_honours_a_short_plan(name, model, loaders):
    steps = []
    step = torch.optim.Optimizer.step

    class Counting(torch.optim.SGD):
        def step(self, *args, **kwargs):
            steps.append(1)
            return super().step(*args, **kwargs)

    plan = Plan(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "SGD", Counting)
        hash_of(name, model, loaders, plan=plan)
    assert plan.wanted is not None
    assert len(steps) <= 2
    assert torch.optim.Optimizer.step is step


@pytest.mark.parametrize("name", CHANGING)
def test_dict_and_tuple_batches_give_the_same_net(name, model, loaders):
    def as_tuples(loader):
        data = loader.dataset
        return DataLoader(TensorDataset(data.images.float(), data.labels), loader.batch_size, shuffle=True)

    tuples = Loaders(*(as_tuples(loader) for loader in loaders))
    assert hash_of(name, model, loaders) == hash_of(name, model, tuples)


def test_finetune_learns_the_retain_set(model, loaders):
    method = get_method("finetune", ["epochs=40", "lr=0.1"])
    net, _ = unlearn_once(method, model, loaders, seed=0, index=0)
    data = loaders.retain.dataset
    accuracy = (net.eval()(data.images.float()).argmax(1) == data.labels).float().mean()
    assert accuracy > 0.9


def test_negative_gradient_raises_the_forget_loss(model, loaders):
    images, labels = loaders.forget.dataset.images.float(), loaders.forget.dataset.labels
    net, _ = unlearn_once(get_method("negative_gradient", ["epochs=3", "lr=0.05"]), model, loaders, seed=0, index=0)
    loss = torch.nn.functional.cross_entropy
    assert loss(net.train()(images), labels) > loss(copy.deepcopy(model).train()(images), labels) + 0.1


def test_noise_has_the_stated_size():
    torch.manual_seed(0)
    net, reference = tinyconv(), tinyconv()
    reference.load_state_dict(net.state_dict())
    add_noise(net, beta=0.7)
    for (name, noisy), old in zip(net.named_parameters(), reference.parameters(), strict=True):
        ratio = (noisy - old).detach().std() / old.std(unbiased=False).clamp(min=1e-12)
        if old.numel() > 1000:
            assert ratio.item() == pytest.approx(0.7, rel=0.05), name
        if old.std(unbiased=False) == 0:
            assert torch.equal(noisy, old), f"{name} is constant: nothing to perturb"


def test_settings_are_read_as_the_type_of_their_default():
    method = get_method("finetune", ["lr=0.003", "epochs=2", "lr=0.004"])
    assert method.settings == {"lr": 0.004, "epochs": 2.0, "momentum": 0.9, "weight_decay": 5e-4}


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        ("finetun", [], "did you mean finetune"),
        ("xyz", [], "unknown: known are do_nothing, finetune"),
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
    with pytest.raises(InputError, match=r"checkpoint 3 failed at .*: AttributeError: .*no_such_layer"):
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
