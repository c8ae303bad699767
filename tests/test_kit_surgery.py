"""Changes of weights that several methods share."""

import copy

import pytest
import torch
from torch import nn

from kit.competition import TensorLoader, make_loaders
from kit.errors import InputError
from kit.methods import get_method
from kit.methods.shared.surgery import (
    add_normal,
    convolutions,
    first_layer,
    last_layer,
    layers,
    n_classes,
    names_of_last,
    norm_names,
    one_image,
    replace_where,
    round_to,
    smallest,
    training_only,
    transpose_kernels,
    zero_at_random,
)
from kit.plan import Plan
from local_eval.models import resnet18_narrow, tinyconv
from tests.conftest import dataset

IMAGES = torch.zeros(2, 3, 32, 32)


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return resnet18_narrow()


def test_layers_of_a_resnet(resnet):
    assert first_layer(resnet) is resnet.conv1
    assert last_layer(resnet, IMAGES) is resnet.fc
    assert len(layers(resnet)) == 21
    assert len(convolutions(resnet)) == 20
    names = {name for name, _ in resnet.named_parameters()}
    assert norm_names(resnet) == {name for name in names if "bn" in name}  # shortcuts' are called downsample.1


def test_layers_of_other_nets():
    net = tinyconv()
    assert (first_layer(net), last_layer(net, IMAGES)) == (net.stages[0][0], net.fc)
    assert norm_names(net) == {f"stages.{stage}.2.{kind}" for stage in range(3) for kind in ("weight", "bias")}
    head = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv1d(2, 2, 1), nn.Flatten(), nn.Linear(8, 2))
    assert (first_layer(head), last_layer(head, torch.rand(3, 2, 4))) == (head[2], head[4])
    assert norm_names(head) == {"1.weight", "1.bias"}
    single = nn.Sequential(nn.Linear(4, 2))
    assert first_layer(single) is last_layer(single, torch.rand(1, 4))


class HeadFirst(nn.Module):
    """Its last layer is registered before the others."""

    def __init__(self):
        super().__init__()
        self.fc, self.conv1, self.bn = nn.Linear(6, 10), nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, images):
        return self.fc(self.conv2(self.bn(self.conv1(images / 255)).relu()).relu().mean((2, 3)))


class SharedHead(nn.Module):
    """Its last layer has the weight of its first."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(48, 10, bias=False), nn.Linear(10, 48, bias=False)
        self.last = nn.Linear(48, 10, bias=False)
        self.last.weight = self.first.weight

    def forward(self, images):
        pooled = torch.nn.functional.adaptive_avg_pool2d(images / 255, 4).flatten(1)
        return self.last(self.second(self.first(pooled).relu()).relu())


def test_the_last_layer_is_the_one_that_gives_the_logits_and_looking_changes_nothing():
    torch.manual_seed(0)
    net = HeadFirst().train()
    net.bn.eval()
    before, drawn = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    loader = TensorLoader(dataset(9, 1), batch_size=4, shuffle=True)
    image = one_image(net, loader)
    assert torch.equal(image, dataset(9, 1).images[:1].float())
    assert last_layer(net, image) is net.fc
    assert n_classes(net, image) == 10
    end = {"fc.weight", "fc.bias"}
    assert names_of_last(net, 1, image) == end
    assert names_of_last(net, 2, image) == end | {"conv2.weight", "conv2.bias"}
    assert torch.equal(torch.get_rng_state(), drawn)
    assert net.training and not net.bn.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("name", ["sun", "amnesiacs", "forget_free", "eu_k"])
def test_methods_change_the_layer_that_gives_the_logits(name):
    torch.manual_seed(0)
    net = HeadFirst()
    parts = [dataset(n, seed) for n, seed in ((24, 1), (9, 2), (9, 3))]
    method = get_method(name, {"forget_free": ["n_layers=9"], "eu_k": ["k=1"]}.get(name, []))
    found = method(copy.deepcopy(net), make_loaders(*parts, batch_size=8, loader=TensorLoader), seed=1, plan=Plan(0))
    changed = {key for key, p in net.named_parameters() if not torch.equal(found.get_parameter(key), p)}
    ends, others = (
        {"fc.weight", "fc.bias"},
        {f"{one}.{kind}" for one in ("conv1", "conv2") for kind in ("weight", "bias")},
    )
    first = {"conv1.weight", "conv1.bias"}
    assert changed == {"sun": ends, "eu_k": ends, "amnesiacs": ends | first, "forget_free": others}[name]


@pytest.mark.parametrize("make", [HeadFirst, SharedHead])
@pytest.mark.parametrize("name", ["random_labels", "salun", "calibrated_restart", "cf_k"])
def test_methods_take_nets_with_their_last_layer_elsewhere(name, make):
    torch.manual_seed(0)
    parts = [dataset(n, seed) for n, seed in ((24, 1), (9, 2), (9, 3))]
    method = get_method(name, ["k=1"] if name == "cf_k" else [])
    net = method(make(), make_loaders(*parts, batch_size=8, loader=TensorLoader), seed=1, plan=Plan(8))
    assert all(torch.isfinite(tensor).all() for tensor in net.state_dict().values())


@pytest.mark.parametrize(
    ("act", "net", "message"),
    [
        (layers, nn.Sequential(nn.LayerNorm(3)), "has no convolution and no linear layer"),
        (convolutions, nn.Sequential(nn.Linear(3, 3)), "has no nn.Conv2d"),
        (transpose_kernels, nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, (3, 1))), "has no square kernel"),
    ],
)
def test_a_net_without_what_is_to_be_changed_is_told(act, net, message):
    with pytest.raises(InputError, match=f"Sequential {message}.*choose another method"):
        act(net)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.34, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["distinct", "ties", "equal"])
def test_the_smallest_are_those_of_a_stable_sort(share, kind):
    torch.manual_seed(0)
    values = torch.rand(3, 11) if kind == "distinct" else torch.randint(0, 4, (3, 11)).float()
    values = torch.zeros(3, 11) if kind == "equal" else values
    expected = torch.zeros(33, dtype=torch.bool)
    expected[values.flatten().sort(stable=True).indices[: round(share * 33)]] = True
    assert torch.equal(smallest(values, share), expected.view(3, 11))


@pytest.mark.parametrize("share", [-0.1, 1.01, float("nan")])
def test_a_share_outside_0_to_1_is_told(share):
    with pytest.raises(InputError, match="expected a share of the weights"):
        smallest(torch.rand(4), share)
    with pytest.raises(InputError, match="expected a share of the weights"):
        zero_at_random([torch.rand(4)], share)


def test_noise_masks_and_replacements():
    torch.manual_seed(0)
    weights = [torch.ones(300, 200), torch.ones(10)]
    add_normal(weights, 0.3)
    assert (weights[0] - 1).std().item() == pytest.approx(0.3, rel=0.02)
    assert (weights[0] - 1).mean().item() == pytest.approx(0.0, abs=0.01)
    weight = torch.ones(300, 200)
    zero_at_random([weight], 0.25)
    assert (weight == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert weight.unique().tolist() == [0.0, 1.0]
    mask = torch.tensor([True, False, True])
    replace_where(mask, target := torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]))
    assert target.tolist() == [1.0, 0.0, 3.0]


def test_kernels_that_are_not_square_stay():
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, (3, 1)))
    square, other = (layer.weight.detach().clone() for layer in net)
    transpose_kernels(net)
    assert torch.equal(net[0].weight, square.transpose(2, 3))
    assert torch.equal(net[1].weight, other)


class SharedKernel(nn.Module):
    """Two convolutions that have one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(3))
        self.second.weight, self.fc = self.first.weight, nn.Linear(3, 10)

    def forward(self, images):
        return self.fc(self.third(self.second(self.first(images / 255).relu()).relu()).mean((2, 3)))


def test_convolutions_that_share_a_weight_are_changed_once():
    torch.manual_seed(0)
    net = SharedKernel()
    before = net.first.weight.detach().clone()
    assert len(convolutions(net)) == 2
    transpose_kernels(net)
    assert torch.equal(net.first.weight, before.transpose(2, 3))
    parts = [dataset(n, seed) for n, seed in ((24, 1), (9, 2), (9, 3))]
    loaders = make_loaders(*parts, batch_size=8, loader=TensorLoader)
    for name, share in (("kookmin", 0.3), ("sebastian", 0.99)):
        found = get_method(name, [f"share={share}"])(copy.deepcopy(net), loaders, seed=1, plan=Plan(0))
        n_changed = sum((a != b).sum().item() for a, b in zip(found.parameters(), net.parameters(), strict=True))
        n = sum(p.numel() for p in net.parameters())
        assert n_changed == (2 * round(0.3 * 81) if name == "kookmin" else pytest.approx(n, abs=0.02 * n + 10))


def test_rounding_leaves_what_float16_cannot_hold(resnet):
    net = tinyconv()
    net.stages[0][2].running_var.fill_(1e6)
    round_to(net, torch.float16)
    assert (net.stages[0][2].running_var == 1e6).all()
    for name, tensor in net.state_dict().items():
        if name != "stages.0.2.running_var":
            assert torch.equal(tensor, tensor.half().to(tensor.dtype))


def test_only_the_named_parameters_train_inside_and_all_that_did_do_afterwards():
    net = tinyconv()
    net.fc.bias.requires_grad_(False)
    before = {name: p.requires_grad for name, p in net.named_parameters()}
    with pytest.raises(RuntimeError), training_only(net, {"fc.weight", "fc.bias"}):
        assert [name for name, p in net.named_parameters() if p.requires_grad] == ["fc.weight"]
        raise RuntimeError
    assert {name: p.requires_grad for name, p in net.named_parameters()} == before
