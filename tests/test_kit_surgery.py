"""Changes of weights that several methods share."""

import pytest
import torch
from torch import nn

from kit.errors import InputError
from kit.methods.shared.surgery import (
    add_normal,
    convolutions,
    first_layer,
    last_layer,
    layers,
    norm_names,
    replace_where,
    round_to,
    smallest,
    training_only,
    transpose_kernels,
    zero_at_random,
)
from local_eval.models import resnet18_narrow, tinyconv


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return resnet18_narrow()


def test_layers_of_a_resnet(resnet):
    assert first_layer(resnet) is resnet.conv1
    assert last_layer(resnet) is resnet.fc
    assert len(layers(resnet)) == 21
    assert len(convolutions(resnet)) == 20
    names = {name for name, _ in resnet.named_parameters()}
    assert norm_names(resnet) == {name for name in names if "bn" in name}  # shortcuts' are called downsample.1


def test_layers_of_other_nets():
    net = tinyconv()
    assert (first_layer(net), last_layer(net)) == (net.stages[0][0], net.fc)
    assert norm_names(net) == {f"stages.{stage}.2.{kind}" for stage in range(3) for kind in ("weight", "bias")}
    head = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv1d(4, 4, 1), nn.Linear(4, 2))
    assert (first_layer(head), last_layer(head)) == (head[2], head[3])
    assert norm_names(head) == {"1.weight", "1.bias"}
    single = nn.Sequential(nn.Linear(4, 2))
    assert first_layer(single) is last_layer(single)


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
