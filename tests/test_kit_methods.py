"""The contract that every method keeps. What each of them does to the weights: test_kit_methods_by_hand.py."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.data import DataLoader, TensorDataset

from kit.archive import state_hash
from kit.checkpoint import unlearn_once
from kit.competition import Loaders, TensorLoader, make_loaders
from kit.methods import get_method, method_names
from kit.plan import Plan
from tests.conftest import dataset

MIXTURE = "mixture(transpose=246, pseudo_label=266)"
NAMES = [*method_names(), MIXTURE]
CHANGING = [name for name in NAMES if name != "do_nothing"]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hash_of(name, model, loaders, seed=1, plan=None):
    torch.manual_seed(12345)  # whatever the generator's state before
    net, _ = unlearn_once(get_method(name), model, loaders, seed=seed, index=0, plan=plan)
    return state_hash(net.state_dict())


def on(device, model):
    """Model and loaders there."""
    parts = [dataset(n, seed).to(device) for n, seed in ((50, 1), (20, 2), (20, 3))]
    return copy.deepcopy(model).to(device), make_loaders(*parts, batch_size=8, loader=TensorLoader)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_names_shapes_and_types_and_leaves_nothing_behind(name, device, model):
    model, loaders = on(device, model)
    model.fc.bias.requires_grad_(False)
    before = state_hash(model.state_dict())
    net, _ = unlearn_once(get_method(name), model, loaders, seed=1, index=0)
    assert state_hash(model.state_dict()) == before, "the original was changed"
    assert not any(parameter.grad is not None for parameter in model.parameters())
    pairs = zip(net.named_modules(), model.named_modules(), strict=True)
    assert all((a, type(module)) == (b, type(other)) for (a, module), (b, other) in pairs)
    assert list(net.state_dict()) == list(model.state_dict())
    for key, tensor in model.state_dict().items():
        found = net.state_dict()[key]
        assert (found.shape, found.dtype, found.device) == (tensor.shape, tensor.dtype, tensor.device)
        assert torch.isfinite(found).all()
    pairs = zip(net.parameters(), model.parameters(), strict=True)
    assert all(ours.requires_grad == its.requires_grad and not ours._backward_hooks for ours, its in pairs)
    assert not any(getattr(module, hooks) for module in net.modules() for hooks in HOOKS)
    assert not any(vars(torch_module)[f"_global{hooks}"] for hooks in HOOKS)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", [name for name in NAMES if name != MIXTURE])
def test_what_requires_no_gradient_is_left_as_it_is(name, model, loaders):
    for parameter in (*model.stages[0].parameters(), *model.stages[1][0].parameters(), model.fc.bias):
        parameter.requires_grad_(False)
    net = get_method(name)(copy.deepcopy(model), loaders, seed=7, plan=Plan(6))
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad or torch.equal(net.get_parameter(key), parameter), key


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CHANGING)
def test_same_seed_same_bits_and_other_seeds_other_bits(name, device, model):
    model, loaders = on(device, model)
    first = hash_of(name, model, loaders, plan=Plan(9))
    if device == "cpu":  # some of a GPU's sums are in no fixed order
        assert hash_of(name, model, loaders, plan=Plan(9)) == first
    assert hash_of(name, model, loaders, seed=2, plan=Plan(9)) != first
    assert first != state_hash(model.state_dict())


@pytest.mark.parametrize("name", [name for name in CHANGING if name != MIXTURE])
def test_gradients_that_a_net_already_has_count_for_nothing(name, model, loaders):
    states = []
    for used in (False, True):
        net = copy.deepcopy(model).eval()
        if used:
            (100 * net(loaders.retain.dataset.images[:4].float()).square().sum()).backward()
        states.append(get_method(name)(net, loaders, seed=7, plan=Plan(6)).state_dict())
    assert state_hash(states[0]) == state_hash(states[1])


@pytest.mark.parametrize("name", [name for name in CHANGING if name != MIXTURE])
def test_a_direct_call_depends_on_its_seed_alone(name, model, loaders):
    states = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        net = get_method(name)(copy.deepcopy(model), loaders, seed=7)
        states.append(state_hash(net.state_dict()))
    assert states[0] == states[1]


def test_a_mixture_is_not_called_but_by_its_components(model, loaders):
    with pytest.raises(TypeError, match="a mixture is called by its components"):
        get_method(MIXTURE)(model, loaders, seed=7)


@pytest.mark.parametrize("n_steps", [0, 1, 2, 5])
@pytest.mark.parametrize("name", NAMES)
def test_it_honours_a_short_plan_asked_for_once(name, n_steps, model, loaders, monkeypatch):
    taken, asked = [], []

    class Counting(torch.optim.SGD):
        def step(self, *args, **kwargs):
            taken.append(1)
            return super().step(*args, **kwargs)

    class Asked(Plan):
        def steps(self, wanted):
            asked.append(wanted)
            return super().steps(wanted)

    monkeypatch.setattr(torch.optim, "SGD", Counting)
    net, _ = unlearn_once(get_method(name), model, loaders, seed=1, index=0, plan=Asked(n_steps))
    assert len(asked) == 1
    assert len(taken) <= n_steps
    assert all(torch.isfinite(tensor).all() for tensor in net.state_dict().values())


@pytest.mark.parametrize("name", CHANGING)
def test_dict_and_tuple_batches_give_the_same_net(name, model, loaders):
    def as_tuples(loader):
        data = loader.dataset
        return DataLoader(TensorDataset(data.images.float(), data.labels), loader.batch_size, shuffle=True)

    tuples = Loaders(*(as_tuples(loader) for loader in loaders))
    assert hash_of(name, model, loaders, plan=Plan(9)) == hash_of(name, model, tuples, plan=Plan(9))


class OnePixel(nn.Module):
    """BatchNorm on maps of one pixel, which fails in training on a batch of one image."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 16), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, images):
        return self.fc(self.norm(self.conv(images / 255)).flatten(1))


@pytest.mark.filterwarnings("ignore:ssd")
@pytest.mark.parametrize("name", method_names())
def test_last_batches_of_one_image_are_no_obstacle(name):
    torch.manual_seed(0)
    loaders = make_loaders(dataset(9, 1), dataset(5, 2), dataset(5, 3), batch_size=4, loader=TensorLoader)
    net = get_method(name, ["retain_batch=4"] if name == "fanchuan" else [])(OnePixel(), loaders, seed=0)
    assert all(torch.isfinite(p).all() for p in net.parameters())
