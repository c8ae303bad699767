"""The diagonal Fisher information: exact against a loop over the samples, estimated against the exact one."""

import copy
import functools

import pytest
import torch
import torchvision
from torch import nn

from kit.archive import state_hash
from kit.errors import InputError
from kit.fisher.diagonal import (
    diagonal,
    estimated_diagonal,
    every_label,
    gradient_sum,
    sampled_labels,
    squared_batch_means,
    true_labels,
)
from kit.fisher.layers import known_layers
from kit.fisher.per_sample import Outer, evaluating, squares
from local_eval.models import build
from tests.reference_fisher import golatkar_diagonal, loop_diagonal, loop_gradients


def data(n: int, size: int = 32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, size, size), generator=generator).float()
    return images, torch.randint(0, 10, (n,), generator=generator)


def batches(images, labels, size=4):
    return list(zip(images.split(size), labels.split(size), strict=True))


def in_use(net, seed=0):
    """With BatchNorm statistics as after training, and weights as laid out by it."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return net.to(memory_format=torch.channels_last)


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        assert (found[name] - tensor).norm() <= tolerance * tensor.norm(), name


class Odd(nn.Module):
    """Layers of every kind that is treated apart: other kernels, strides and dilations, tokens, a layer run twice, a
    tied weight, kinds left to the loop, ReLU in place right after a convolution."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 6, (3, 5), stride=(2, 1), padding=(0, 2)),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 8, 3, padding=2, dilation=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, groups=2, padding=1),
            nn.Conv2d(8, 8, 3, padding="same"),
            nn.Conv2d(8, 5, 4, stride=3, padding=1, padding_mode="reflect"),
            nn.GELU(),
            nn.Conv2d(5, 6, 3, stride=2, padding=1),
            nn.Conv2d(6, 7, 2, stride=2, padding=1),
        )
        self.tokens = nn.Linear(7, 8)
        self.norm = nn.LayerNorm(8)
        self.twice = nn.Linear(8, 8)
        self.first, self.tied = nn.Linear(8, 8), nn.Linear(8, 8)
        self.tied.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones(()))
        self.statistics = nn.BatchNorm1d(8)
        self.unused = nn.Linear(2, 2)
        self.fc = nn.Linear(8, 10)

    def forward(self, images):
        maps = self.convolutions((images - 128) / 64)
        tokens = self.norm(self.tokens(maps.flatten(2).transpose(1, 2)))
        tokens = self.tied(torch.tanh(self.first(self.twice(torch.tanh(self.twice(tokens))))))
        return self.fc(self.statistics(tokens.mean(1) * self.scale))


@pytest.mark.parametrize("architecture", ["resnet18", "resnet20", "smallconv"])
def test_diagonal_equals_a_loop_over_the_samples(architecture):
    net, (images, labels) = in_use(build(architecture, 10, seed=0)), data(6)
    assert_close(diagonal(net, batches(images, labels)), loop_diagonal(net, images, labels), 1e-5)


@pytest.mark.parametrize("size", [17, 33])
def test_layers_of_all_kinds_go_the_right_way(size):
    torch.manual_seed(0)
    net, (images, labels) = in_use(Odd()).double(), data(5, size)
    net.convolutions[0].bias.requires_grad_(False)
    images = images.double()
    layers = known_layers(net.eval(), images)
    assert {"convolutions.0.", "convolutions.3.", "tokens.", "statistics.", "fc."} <= layers.keys()
    assert layers.keys().isdisjoint(
        {"twice.", "first.", "tied.", "norm.", "unused.", "convolutions.5.", "convolutions.6.", "convolutions.7."}
    )
    expected = loop_diagonal(net, images, labels)
    assert "convolutions.0.bias" not in expected
    assert_close(diagonal(net, batches(images, labels, 3)), expected, 1e-12)
    assert expected["convolutions.9.weight"].any()


class Net(nn.Module):
    """Two layers, of which `use` says how the first is used: (net, x) -> what the second gets."""

    def __init__(self, use, layer=None):
        super().__init__()
        self.use = use
        self.first = layer or nn.Linear(12, 6)
        self.row, self.rows = nn.Parameter(torch.randn(1, 12)), nn.Parameter(torch.randn(2, 12))
        self.fc = nn.Linear(6, 10)

    def forward(self, images):
        return self.fc(torch.tanh(self.use(self, images.flatten(1))))


def quietly(net, x):
    with torch.no_grad():
        return net.first(x)


def doubling():
    layer = nn.Linear(12, 6)
    layer.register_forward_hook(lambda module, args, output: 2 * output)
    return layer


def replaced():
    layer = nn.Linear(12, 6)
    layer.forward = lambda x: nn.functional.linear(x, layer.weight.square(), layer.bias)
    return layer


def scaled():
    layer = nn.Linear(12, 6)
    layer.register_parameter("scale", nn.Parameter(torch.ones(6)))
    return layer


USES = {
    "one row for all samples": lambda net, x: x[:, :6] * net.first(net.row),
    "two rows for all samples": lambda net, x: x[:, :6] * net.first(net.rows).sum(0),
    "its weight used again": lambda net, x: net.first(x) + 0.3 * x @ net.first.weight.T,
    "its bias used again": lambda net, x: net.first(x) * net.first.bias,
    "its weight as its input": lambda net, x: net.first(x * net.first.weight.mean(0)),
    "its weight used behind another": lambda net, x: nn.functional.linear(net.first(x), net.fc.weight[:6]),
    "its weight used alone": lambda net, x: nn.functional.linear(x, net.first.weight),
    "detached": lambda net, x: net.first(x).detach() + x[:, :6] * net.row[:, :6],
    "without gradient": lambda net, x: quietly(net, x) + x[:, :6],
    "detached, its weight used": lambda net, x: net.first(x).detach() + x @ net.first.weight.T,
    "not to the logits": lambda net, x: x[:, :6] + 0 * net.first(x).argmax(),
    "a keyword": lambda net, x: net.first(input=x),
    "positions first": lambda net, x: net.first(x[None].expand(3, -1, -1)).sum(0),
}
LAYERS = {
    "a hook that changes the output": doubling,
    "another forward": replaced,
    "a parameter more": scaled,
    "weight norm": lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(12, 6)),
    "weight norm by hooks": lambda: torch.nn.utils.weight_norm(nn.Linear(12, 6)),
}
ODD_USES = {name: lambda use=use: Net(use) for name, use in USES.items()} | {
    name: lambda make=make: Net(lambda net, x: net.first(x), make()) for name, make in LAYERS.items()
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ODD_USES)
def test_a_layer_used_in_any_way_counts_as_in_a_loop(name):
    torch.manual_seed(0)
    net = ODD_USES[name]().double()
    images, labels = torch.randn(5, 3, 2, 2).double(), torch.arange(5)
    expected = loop_diagonal(net, images, labels)
    assert_close(diagonal(net, batches(images, labels, 2)), expected, 1e-12)
    rows = list(loop_gradients(net, images, labels))
    assert_close(
        gradient_sum(net, batches(images, labels, 2)), {k: sum(row[k] for row in rows) for k in rows[0]}, 1e-12
    )


class Standardized(nn.Conv2d):
    """A convolution whose class computes otherwise (Qiao et al. 2019), below the method that others override."""

    def _conv_forward(self, images, weight, bias):
        return super()._conv_forward(images, (weight - weight.mean()) / weight.std(), bias)


def test_a_convolution_of_a_class_of_its_own_goes_the_right_way():
    torch.manual_seed(0)
    net = nn.Sequential(Standardized(3, 4, 2), nn.Flatten(), nn.Linear(4, 6)).double()
    images, labels = torch.randn(5, 3, 2, 2).double(), torch.arange(5)
    assert known_layers(net.eval(), images).keys() == {"2."}
    assert_close(diagonal(net, batches(images, labels, 2)), loop_diagonal(net, images, labels), 1e-12)


def test_plain_layers_go_the_fast_way():
    net = Net(lambda net, x: net.first(x)).eval()
    assert known_layers(net, torch.randn(1, 3, 2, 2)).keys() == {"first.", "fc."}


@pytest.mark.parametrize(
    "otherwise",
    [
        lambda net, x: net.first(x[:1]) + x[:, :6],
        lambda net, x: net.first(net.first(x).repeat(1, 2)),
        lambda net, x: x[:, :6],
    ],
)
def test_a_layer_that_runs_otherwise_in_a_later_batch_is_told(otherwise):
    net = Net(lambda net, x: net.first(x) if len(x) < 3 else otherwise(net, x))
    images, labels = torch.randn(5, 3, 2, 2), torch.arange(5)
    with pytest.raises(InputError, match=r"first \(Linear\) does not run once on every sample"):
        diagonal(net, [(images, labels)])


def test_a_transformer_encoder_equals_a_loop():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 16, batch_first=True), 2)
    net = Net(lambda net, x: encoder(x[:, None] + net.rows).mean(1)[:, :6]).double()
    net.encoder = encoder.double()
    images, labels = torch.randn(5, 3, 2, 2).double(), torch.arange(5)
    assert any(prefix.startswith("encoder.") for prefix in known_layers(net.eval(), images))
    assert_close(diagonal(net, batches(images, labels, 2)), loop_diagonal(net, images, labels), 1e-10)


@pytest.mark.parametrize(("name", "size"), [("swin_v2_t", 32), ("vit_b_16", 32), ("efficientnet_b0", 32)])
def test_torchvisions_nets_equal_a_loop_over_the_samples(name, size):
    torch.manual_seed(0)
    options = {"image_size": size} if name.startswith("vit") else {}
    net = getattr(torchvision.models, name)(num_classes=10, **options)
    for part in ("features", "encoder"):  # fewer blocks are faster
        for blocks in getattr(net, part, nn.Module()).children():
            if isinstance(blocks, nn.Sequential):
                del blocks[2:]
    images, labels = torch.randn(3, 3, size, size), torch.tensor([1, 2, 3])
    expected = loop_diagonal(net, images, labels)
    found = diagonal(net, batches(images, labels, 2))
    total = sum(tensor.norm() ** 2 for tensor in expected.values()) ** 0.5
    for key, tensor in expected.items():
        assert (found[key] - tensor).norm() <= 1e-3 * tensor.norm() + 1e-9 * total, key


@pytest.mark.parametrize("n_positions", [2, 3, 4, 9])
def test_squares_of_sums_that_cancel_are_not_negative(n_positions):
    torch.manual_seed(0)
    left, right = torch.randn(200, n_positions, 1), torch.randn(200, n_positions, 5)
    right[:, -1] = -(left[:, :-1] * right[:, :-1]).sum(1) / left[:, -1]
    found = squares(Outer("weight", left, right, lambda tensor: tensor))
    assert ((found >= 0) & (found < 1e-2)).all()


def test_every_label_gives_golatkars_sum():
    net, (images, labels) = in_use(build("smallconv", 10, seed=0)).double(), data(6)
    found = diagonal(net, batches(images.double(), labels), every_label)
    assert_close(found, golatkar_diagonal(net, images.double()), 1e-10)


def test_labels_may_be_any_function():
    net, (images, labels) = build("tinyconv", 10, seed=0), data(6, 16)
    found = diagonal(net, batches(images, labels), lambda logits, _: true_labels(logits, torch.full_like(_, 3)))
    assert_close(found, loop_diagonal(net, images, torch.full_like(labels, 3)), 1e-5)


def test_drawn_labels_have_the_expectation_over_all_labels():
    torch.manual_seed(0)
    logits = 2 * torch.randn(1, 5, dtype=torch.float64)
    p = logits.softmax(1)[0]
    terms = sampled_labels(logits.expand(20000, 5), torch.zeros(20000, dtype=torch.int64))
    products = torch.einsum("tnc,tnd->ncd", terms, terms)
    distance = products.mean(0) - (torch.diag(p) - torch.outer(p, p))
    assert (distance.abs() <= 5 * products.std(0) / 20000**0.5 + 1e-12).all()
    exact = every_label(logits, torch.zeros(1, dtype=torch.int64))[:, 0]
    assert torch.allclose(exact.T @ exact, torch.diag(p) - torch.outer(p, p))


@functools.cache
def estimates(rule, passes):
    """Estimates of a small net's diagonal, (n_repeats, d), their error bars, and the exact diagonal."""
    n_repeats = 150 if passes == 1 else 80
    net, (images, labels) = in_use(build("tinyconv", 10, seed=0)), data(12, 16)
    torch.manual_seed(1)
    pairs = batches(images, labels)
    found = [estimated_diagonal(net, pairs, rule, passes=passes) for _ in range(n_repeats)]
    exact = diagonal(net, pairs, every_label if rule is sampled_labels else rule)
    return flat_rows([e.diagonal for e in found]), [e.relative_error for e in found], flat_rows([exact])[0]


def flat_rows(many):
    return torch.stack([torch.cat([t.flatten() for t in named.values()]) for named in many])


@pytest.mark.parametrize("rule", [true_labels, sampled_labels, every_label])
def test_the_estimate_is_unbiased(rule):
    found, _, exact = estimates(rule, 1)
    torch.manual_seed(2)
    for weights in (torch.ones(len(exact)), *torch.rand(20, len(exact))):
        values = found @ weights
        assert abs(values.mean() - exact @ weights) < 4.5 * values.std() / len(values) ** 0.5


@pytest.mark.parametrize("passes", [1, 4])
def test_the_error_bar_is_as_wide_as_the_error(passes):
    found, bars, exact = estimates(every_label, passes)
    error = (found - exact).square().sum(1).mean().sqrt() / exact.norm()
    assert sum(bars) / len(bars) == pytest.approx(error.item(), rel=0.06)


def test_the_error_bar_of_one_batch_is_its_largest():
    net, (images, labels) = in_use(build("tinyconv", 10, seed=0)), data(12, 16)
    assert estimated_diagonal(net, [(images, labels)]).relative_error == pytest.approx(2**0.5)


def test_more_passes_bring_the_estimate_nearer():
    errors = [(found - exact).square().sum(1).mean() for found, _, exact in (estimates(every_label, p) for p in (1, 4))]
    assert errors[1] == pytest.approx(errors[0].item() / 4, rel=0.3)


def test_bfloat16_changes_the_estimate_by_less_than_its_error():
    net, (images, labels) = in_use(build("smallconv", 10, seed=0)), data(64)
    plain, rounded = (seeded_estimate(net, batches(images, labels, 16), dtype) for dtype in (None, torch.bfloat16))
    distance = (flat_rows([plain]) - flat_rows([rounded])).norm() / flat_rows([plain]).norm()
    assert 0 < distance < 0.1
    assert flat_rows([rounded]).sum() == pytest.approx(flat_rows([plain]).sum().item(), rel=0.03)


def seeded_estimate(net, pairs, dtype):
    torch.manual_seed(0)
    return estimated_diagonal(net, pairs, autocast_dtype=dtype).diagonal


def test_squared_batch_means_are_what_they_say():
    net, (images, labels) = in_use(build("tinyconv", 10, seed=0)), data(8, 16)
    rows = list(loop_gradients(net, images, labels))
    means = [{name: sum(row[name] for row in rows[i : i + 4]) / 4 for name in rows[0]} for i in (0, 4)]
    expected = {name: (means[0][name] ** 2 + means[1][name] ** 2) / 2 for name in rows[0]}
    assert_close(squared_batch_means(net, batches(images, labels)), expected, 1e-5)


@pytest.mark.parametrize("measure", [diagonal, estimated_diagonal, squared_batch_means])
def test_the_net_is_left_as_it_came(measure):
    net, (images, labels) = in_use(build("resnet20", 10, seed=0)), data(4, 16)
    net.train()
    net.blocks[0].bn1.eval()
    net.fc.bias.requires_grad_(False)
    before, modes = state_hash(net.state_dict()), [module.training for module in net.modules()]
    with torch.no_grad():
        measure(net, batches(images, labels))
    assert state_hash(net.state_dict()) == before
    assert [module.training for module in net.modules()] == modes
    assert not any(module._forward_hooks or module._backward_hooks for module in net.modules())
    assert all(p.grad is None and p.requires_grad == (p is not net.fc.bias) for p in net.parameters())


def test_evaluation_mode_ends_with_an_error():
    net = build("tinyconv", 10, seed=0).train()
    with pytest.raises(ZeroDivisionError), evaluating(net):
        raise ZeroDivisionError
    assert net.training


def test_dict_and_tuple_batches_give_the_same(loaders, model):
    dicts = list(loaders.retain)
    tuples = [(batch["image"], batch["age_group"]) for batch in dicts]
    for found, same in zip(diagonal(model, dicts).values(), diagonal(model, tuples).values(), strict=True):
        assert torch.equal(found, same)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation"),
    [
        (1, 3, 1, 1, 1),
        (2, 3, 2, 1, 1),
        (1, 5, 1, 2, 1),
        (1, 3, 1, 2, 2),
        (3, 3, 1, 1, 1),
        (1, 3, 3, 2, 1),
        (2, 4, 1, 3, 1),
        (3, 2, 3, 0, 1),
        (1, 2, 1, 1, 2),
        (1, 2, 2, 2, 1),
    ],
)
def test_kernels_that_mostly_meet_padding(size, kernel, stride, padding, dilation):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, kernel, stride, padding, dilation), nn.Flatten(), nn.LazyLinear(10)).double()
    images, labels = torch.randn(4, 2, size, size).double(), torch.arange(4)
    expected = loop_diagonal(net, images, labels)  # also gives the last layer its size
    assert_close(diagonal(net, [(images, labels)]), expected, 1e-12)


def test_mistakes_are_told(loaders, model):
    untracked = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    with pytest.raises(InputError, match=r"1 \(BatchNorm2d\) keeps no running statistics"):
        diagonal(untracked, loaders.retain)
    with pytest.raises(InputError, match="no batch was given"):
        diagonal(model, [])
    with pytest.raises(InputError, match="read before"):
        estimated_diagonal(model, iter(loaders.retain), passes=2)
    with pytest.raises(InputError, match="passes is 0"):
        estimated_diagonal(model, loaders.retain, passes=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_works_on_a_gpu():
    net, (images, labels) = in_use(build("resnet20", 10, seed=0)), data(8)
    expected = diagonal(net, batches(images, labels))
    found = diagonal(copy.deepcopy(net).cuda(), batches(images, labels))
    assert_close({name: tensor.cpu() for name, tensor in found.items()}, expected, 1e-3)
