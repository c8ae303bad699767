"""Every method on nets of other shapes: it works, or says in one line why not."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import VisionTransformer

from kit.checkpoint import unlearn_once
from kit.competition import TensorLoader, make_loaders
from kit.errors import InputError
from kit.methods import get_method, method_names
from kit.plan import Plan
from tests.conftest import dataset


class WithoutNorms(nn.Module):
    """No BatchNorm, no conv1, no fc, a kernel that is not square, groups."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, (3, 1), groups=2)
        self.head = nn.Linear(4, 10)

    def forward(self, images):
        return self.head(F.relu(self.second(F.relu(self.first(images / 255)))).mean((2, 3)))


class Logistic(nn.Module):
    """One linear layer."""

    def __init__(self):
        super().__init__()
        self.only = nn.Linear(3 * 16 * 16, 10)

    def forward(self, images):
        return self.only(images.flatten(1) / 255)


def transformer():
    net = VisionTransformer(16, 8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=10)
    nn.init.normal_(net.heads.head.weight, std=0.1)  # its constructor leaves zeros there
    return net


NETS = {"without_norms": WithoutNorms, "logistic": Logistic, "transformer": transformer}
IMPOSSIBLE = {  # by net and method: what is said
    ("logistic", "kookmin"): "has no nn.Conv2d",
    ("logistic", "transpose"): "has no nn.Conv2d",
    ("logistic", "pseudo_label"): "has no nn.Conv2d",
    ("logistic", "forget_free"): "has no layer but its last",
}
QUICK = {"ssse": ["n_gradients=4", "size=2", "eps=0.001"]}


@pytest.mark.parametrize("name", [name for name in method_names() if name != "do_nothing"])
@pytest.mark.parametrize("kind", NETS)
def test_a_method_works_on_any_net_or_says_why_not(kind, name):
    torch.manual_seed(0)
    net = NETS[kind]().eval()
    loaders = make_loaders(dataset(24, 1), dataset(9, 2), dataset(9, 3), batch_size=8, loader=TensorLoader)
    method = get_method(name, QUICK.get(name, []))
    if said := IMPOSSIBLE.get((kind, name)):
        with pytest.raises(InputError, match=f"{said}.*: choose another method"):
            method(copy.deepcopy(net), loaders, seed=1, plan=Plan(12))
        return
    try:
        found = method(copy.deepcopy(net), loaders, seed=1, plan=Plan(12))
    except InputError as error:
        assert "has parameters but no reset_parameters" in str(error)
        assert kind == "transformer"
        return
    state = net.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in found.state_dict().values())
    assert any(not torch.equal(tensor, state[key]) for key, tensor in found.state_dict().items())


def test_a_mixture_on_a_net_that_one_of_its_components_cannot_change_names_the_reason():
    torch.manual_seed(0)
    net = Logistic().eval()
    loaders = make_loaders(dataset(24, 1), dataset(9, 2), dataset(9, 3), batch_size=8, loader=TensorLoader)
    method = get_method("mixture(finetune=1, transpose=1)")
    made = {method.components[method.component_of(index)].name: index for index in (0, 1)}
    assert unlearn_once(method, net, loaders, seed=1, index=made["finetune"], plan=Plan(2))
    with pytest.raises(InputError, match=r"has no nn.Conv2d.*: choose another method"):
        unlearn_once(method, net, loaders, seed=1, index=made["transpose"], plan=Plan(2))
