"""F^-1 v against the dense inverse in float64 and the SSSE paper's recursion: gradients written out, and streamed."""

import pytest
import torch
from torch import nn

from kit.archive import state_hash
from kit.errors import InputError
from kit.fisher.diagonal import every_label, gradient_sum, sampled_labels, true_labels
from kit.fisher.inverse import gram, inverse_product, solve
from kit.fisher.streamed import streamed_inverse_product
from local_eval.models import build
from tests.reference_fisher import dense_inverse_product, loop_gradients, matrix_of, recursive_inverse
from tests.test_kit_fisher import ODD_USES, Odd, data, in_use

BLOCKS = [None, 37, 1, 500]


def gradients_and_vectors(m, d, n_vectors=3):
    generator = torch.Generator().manual_seed(m + d)
    scale = torch.logspace(0, -2, d, dtype=torch.float64)  # as of a net: some parameters matter more
    gradients = torch.randn(m, d, generator=generator, dtype=torch.float64) * scale
    return gradients, torch.randn(n_vectors, d, generator=generator, dtype=torch.float64)


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("m", "d"), [(40, 300), (300, 40), (1, 7), (600, 20)])
@pytest.mark.parametrize("damping", [1e-4, 1.0])
def test_it_equals_the_dense_inverse(m, d, damping, block):
    gradients, vectors = gradients_and_vectors(m, d)
    found = inverse_product(gradients, vectors, damping, block)
    assert relative(found, dense_inverse_product(gradients, vectors, damping, block)) < 1e-8


@pytest.mark.parametrize("block", [None, 50])
def test_it_equals_the_recursion_of_the_paper(block):
    gradients, vectors = gradients_and_vectors(60, 120)
    found = inverse_product(gradients, vectors, 1e-4, block)
    pieces = zip(gradients.split(block or 120, dim=1), vectors.split(block or 120, dim=1), strict=True)
    expected = torch.cat([v @ recursive_inverse(g, 1e-4) for g, v in pieces], dim=1)
    assert relative(found, expected) < 1e-8


def test_one_vector_is_a_vector_and_float32_stays_float32():
    gradients, vectors = gradients_and_vectors(30, 80)
    found = inverse_product(gradients.float(), vectors[0].float(), 1e-2)
    assert found.shape == (80,)
    assert found.dtype == torch.float32
    assert relative(found.double(), inverse_product(gradients, vectors[0], 1e-2)) < 1e-4


def test_inner_products_of_many_gradients_are_symmetric_and_exact():
    gradients, _ = gradients_and_vectors(1100, 30)
    assert torch.allclose(gram(gradients), gradients @ gradients.T, rtol=1e-12, atol=1e-12)
    wide = torch.randn(20, 20000)
    assert relative(gram(wide), wide.double() @ wide.double().T) < 1e-6


def test_solving_leaves_its_arguments_alone():
    gradients, vectors = gradients_and_vectors(5, 9)
    inner = gram(gradients)
    before = inner.clone()
    solve(inner, gradients @ vectors.T, 0.1)
    assert torch.equal(inner, before)


def case(architecture, n, image_size=16, dtype=torch.float64):
    """A net, its images and labels, its gradients as a matrix, and two vectors by name."""
    torch.manual_seed(0)
    net = in_use(Odd() if architecture == "odd" else build(architecture, 10, seed=0)).to(dtype)
    images, labels = data(n, image_size)
    images = images.to(dtype)
    rows = matrix_of(loop_gradients(net, images, labels))
    generator = torch.Generator().manual_seed(3)
    named = {name: p for name, p in net.named_parameters() if p.requires_grad}
    vectors = {
        name: torch.randn(2, *p.shape, generator=generator, dtype=torch.float64).to(dtype) for name, p in named.items()
    }
    return net, images, labels, rows, vectors


def flat(named):
    return torch.cat([tensor.reshape(len(tensor), -1).double() for tensor in named.values()], dim=1)


@pytest.mark.parametrize("block", [None, 700, 5000])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(("architecture", "image_size"), [("tinyconv", 16), ("resnet20", 8), ("odd", 17)])
def test_streaming_equals_gradients_written_out(architecture, image_size, size, block):
    net, images, labels, rows, vectors = case(architecture, 12, image_size)
    damping = 1e-3 * rows.square().sum(1).mean().item()
    found = streamed_inverse_product(net, images, labels, vectors, damping, size=size, block=block, memory=3e5)
    assert found.keys() == vectors.keys()
    assert all(found[name].shape == vectors[name].shape for name in vectors)
    expected = inverse_product(rows.unflatten(0, (-1, size)).mean(1), flat(vectors), damping, block)
    assert relative(flat(found), expected) < 1e-8


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("block", [None, 50])
@pytest.mark.parametrize("name", ODD_USES)
def test_streaming_with_little_memory_takes_layers_used_in_any_way(name, block):
    torch.manual_seed(0)
    net = ODD_USES[name]().double()
    images, labels = torch.randn(6, 3, 2, 2).double(), torch.arange(6)
    rows = matrix_of(loop_gradients(net, images, labels))
    vectors = {name: torch.randn(1, *p.shape).double() for name, p in net.named_parameters()}
    found = streamed_inverse_product(net, images, labels, vectors, 1e-2, block=block, memory=1)
    assert relative(flat(found), dense_inverse_product(rows, flat(vectors), 1e-2, block)) < 1e-8


@pytest.mark.parametrize("frozen", [False, True])
def test_a_net_detached_from_its_logits_has_no_gradients(frozen):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 10)).double()
    net.register_forward_hook(lambda module, args, output: output.detach())
    images, labels = torch.randn(4, 3, 2, 2).double(), torch.arange(4)
    net[1].bias.requires_grad_(not frozen)
    vectors = {name: torch.ones(1, *p.shape).double() for name, p in net.named_parameters() if p.requires_grad}
    found = streamed_inverse_product(net, images, labels, vectors, 0.5)
    assert all(torch.equal(found[name], 2 * vector) for name, vector in vectors.items())


@pytest.mark.parametrize("block", [None, 400])
def test_streaming_equals_the_dense_inverse_and_the_recursion(block):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.Flatten())
    net = in_use(net.append(nn.Linear(8, 10))).double()
    images, labels = data(20, 8)
    images = images.double() / 64 - 2
    rows = matrix_of(loop_gradients(net, images, labels))
    vectors = gradient_sum(net, [(images[:5].float(), labels[:5])])
    assert relative(flat({name: v[None] for name, v in vectors.items()})[0], rows[:5].sum(0)) < 1e-12
    vectors = {name: vector[None] for name, vector in vectors.items()}
    found = flat(streamed_inverse_product(net, images, labels, vectors, 1e-4, block=block))
    assert relative(found, dense_inverse_product(rows, flat(vectors), 1e-4, block)) < 1e-8
    pieces = zip(rows.split(block or 2000, dim=1), flat(vectors).split(block or 2000, dim=1), strict=True)
    assert relative(found, torch.cat([v @ recursive_inverse(g, 1e-4) for g, v in pieces], dim=1)) < 1e-8


def test_a_resnet18_in_float32_comes_close_to_float64():
    net, images, labels, rows, vectors = case("resnet18", 3, 32, torch.float32)
    vectors = {name: vector[:1] for name, vector in vectors.items()}
    damping = 1e-2 * rows.square().sum(1).mean().item()
    found = streamed_inverse_product(net, images, labels, vectors, damping)
    assert relative(flat(found), inverse_product(rows, flat(vectors), damping)) < 1e-4


def test_only_the_named_parameters_count():
    net, images, labels, rows, vectors = case("tinyconv", 8)
    only = {name: vector for name, vector in vectors.items() if name.startswith("fc.")}
    rows = rows[:, -flat(only).shape[1] :]
    found = streamed_inverse_product(net, images, labels, only, 1e-3)
    assert relative(flat(found), inverse_product(rows, flat(only), 1e-3)) < 1e-8


def test_drawn_labels_are_drawn_once():
    net, images, labels, _, vectors = case("tinyconv", 8)

    def remembered(logits, labels, drawn=[]):  # noqa: B006 - remembers on purpose
        drawn.append(sampled_labels(logits, labels))
        assert len(drawn) == 1
        return drawn[0]

    torch.manual_seed(5)
    found = streamed_inverse_product(net, images, labels, vectors, 1e-3, rule=remembered)
    torch.manual_seed(5)
    with torch.no_grad():
        drawn = -(sampled_labels(net(images), labels)[0] - net(images).softmax(1))
    same = streamed_inverse_product(net, images, drawn.argmax(1), vectors, 1e-3, rule=true_labels)
    assert relative(flat(found), flat(same)) < 1e-10


def test_streaming_leaves_the_net_as_it_came():
    net, images, labels, _, vectors = case("tinyconv", 6)
    net.train()
    before = state_hash(net.state_dict())
    with torch.no_grad():
        streamed_inverse_product(net, images, labels, vectors, 1e-3)
    assert state_hash(net.state_dict()) == before
    assert all(module.training and not module._forward_hooks for module in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_mistakes_are_told():
    gradients, vectors = gradients_and_vectors(5, 9)
    with pytest.raises(InputError, match="damping is 0: F has an inverse only"):
        inverse_product(gradients, vectors, 0)
    with pytest.raises(InputError, match=r"damping 1e-12 is too small .* or one is not finite"):
        inverse_product(gradients * torch.nan, vectors, 1e-12)
    net, images, labels, _, vectors = case("tinyconv", 6)
    with pytest.raises(InputError, match="6 images do not make gradients over 4 each"):
        streamed_inverse_product(net, images, labels, vectors, 1.0, size=4)
    with pytest.raises(InputError, match="gives 10 terms: one gradient a sample"):
        streamed_inverse_product(net, images, labels, vectors, 1.0, rule=every_label)
