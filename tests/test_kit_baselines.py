"""What the literature's baselines do to the weights, against their equations written out in plain torch."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kit.competition import Loaders, TensorLoader, make_loaders
from kit.errors import InputError
from kit.methods import get_method, random_labels, salun
from kit.methods.shared.data import other_labels
from kit.methods.shared.surgery import names_of_last
from kit.plan import Plan
from local_eval.models import resnet18_narrow
from tests.conftest import dataset
from tests.test_kit_winners import assert_same, batch_of, changed, kl, optimizer_of, step, unlearned

SEED = 7
IMAGES = torch.zeros(2, 3, 32, 32)


@pytest.fixture
def whole():
    """Loaders of one batch each, so that the order of the examples does not matter."""
    return make_loaders(dataset(40, 1), dataset(40, 2), dataset(40, 3), batch_size=40, loader=TensorLoader)


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(3)
    return resnet18_narrow().eval()


def falling(lr, n):
    return [lr * (1 + math.cos(math.pi * t / n)) / 2 for t in range(n)]


def test_neggrad_plus(model, whole):
    (forget, theirs), (retain, labels) = batch_of(whole.forget), batch_of(whole.retain)
    net = unlearned("neggrad_plus", model, whole, "epochs=4", "lr=0.1", "alpha=0.7")
    expected = copy.deepcopy(model).train()
    optimizer = optimizer_of(expected, 0.1)
    for rate in falling(0.1, 4):
        forgotten = F.cross_entropy(expected(forget), theirs)
        step(optimizer, 0.7 * F.cross_entropy(expected(retain), labels) - 0.3 * forgotten, rate)
    for (name, tensor), found in zip(expected.named_parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(found, tensor, rtol=1e-4, atol=2e-5, msg=lambda m, k=name: f"{k}: {m}")
    assert changed(net, model)


def test_scrub(model, whole):
    (forget, _), (retain, labels) = batch_of(whole.forget), batch_of(whole.retain)
    settings = ["epochs=3", "max_epochs=2", "lr=0.02", "max_lr=0.02", "alpha=0.5", "gamma=0.8"]
    plan = Plan()
    net = unlearned("scrub", model, whole, *settings, plan=plan)
    assert plan.wanted == 2 + 3
    expected, teacher = copy.deepcopy(model).train(), copy.deepcopy(model).eval()

    def distance(images, logits):
        return 16 * kl((teacher(images) / 4).softmax(1).detach(), (logits / 4).softmax(1))

    for epoch, rate in enumerate(falling(0.02, 3)):
        if epoch < 2:
            step(optimizer_of(expected, 0.02), -distance(forget, expected(forget)))
        logits = expected(retain)
        loss = 0.8 * F.cross_entropy(logits, labels) + 0.5 * distance(retain, logits)
        step(optimizer_of(expected, rate), loss)
    assert_same(net, expected, model, atol=1e-4)  # 16 times the divergence, 16 times the rounding


def test_bad_teacher(model, whole):
    (forget, _), (retain, _) = batch_of(whole.forget), batch_of(whole.retain)
    settings = ["retain_share=0.5", "epochs=4", "lr=2", "temperature=2"]
    plan = Plan()
    net = unlearned("bad_teacher", model, whole, *settings, plan=plan)
    assert plan.wanted == 2
    torch.manual_seed(SEED)
    bad = copy.deepcopy(model)
    for module in bad.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
    bad.train()
    expected, good = copy.deepcopy(model).train(), copy.deepcopy(model).eval()
    optimizer, share = optimizer_of(expected, 2.0), 40 / (40 + 20)
    told = [(teacher(images) / 2).softmax(1).detach() for teacher, images in ((good, retain), (bad, forget))]
    for rate in falling(2.0, 2):
        kept = kl(told[0], (expected(retain) / 2).softmax(1))
        lost = kl(told[1], (expected(forget) / 2).softmax(1))
        step(optimizer, (1 - share) * kept + share * lost, rate)
    assert_same(net, expected, model)


def test_other_labels_are_never_the_own_and_evenly_spread():
    torch.manual_seed(0)
    labels = torch.arange(9000) % 10
    drawn = other_labels(labels, 10)
    assert not (drawn == labels).any()
    assert drawn.min() == 0 and drawn.max() == 9
    pairs = torch.bincount(((drawn - labels) % 10), minlength=10)[1:].float()
    assert (pairs / 1000 - 1).abs().max() < 0.15


@pytest.mark.parametrize("method", [random_labels, salun])
def test_random_labels_are_drawn_once_for_both_sets(method, model, loaders, monkeypatch):
    batches = []

    def note(*sources):
        batches.extend(sources)
        return sources[0]

    monkeypatch.setattr(method, "interleaved", note)
    method.unlearn(copy.deepcopy(model), *loaders, seed=SEED)
    retain, wrong = batches
    assert retain is loaders.retain
    true = {image.numpy().tobytes(): label.item() for image, label in zip(*batch_of(loaders.forget), strict=True)}
    told = [(true[x.contiguous().numpy().tobytes()], y.item()) for pair in wrong for x, y in zip(*pair, strict=True)]
    assert len(told) == 20
    assert all(one != other for one, other in told)


def test_random_labels(model, whole, monkeypatch):
    monkeypatch.setattr(random_labels, "interleaved", lambda retain, wrong: [*wrong, *retain])
    net = unlearned("random_labels", model, whole, "epochs=2", "lr=0.1")
    (forget, theirs), (retain, labels) = batch_of(whole.forget), batch_of(whole.retain)
    torch.manual_seed(SEED)
    (order,) = [batch["age_group"] for batch in whole.forget]
    wrong_in_order = other_labels(order, 10)
    torch.manual_seed(SEED)
    (images,) = [batch["image"] for batch in whole.forget]
    expected = copy.deepcopy(model).train()
    optimizer = optimizer_of(expected, 0.1)
    for turn, rate in enumerate(falling(0.1, 4)):
        given = (retain, labels) if turn % 2 else (images, wrong_in_order)
        step(optimizer, F.cross_entropy(expected(given[0]), given[1]), rate)
    assert not torch.equal(order, wrong_in_order) and len(forget) == len(theirs)
    assert_same(net, expected, model)


def test_salun_moves_the_weights_of_the_largest_gradients_alone(model, whole):
    net = unlearned("salun", model, whole, "share=0.3", "epochs=3")
    images, labels = batch_of(whole.forget)
    fresh = copy.deepcopy(model).eval()
    F.cross_entropy(fresh(images), labels).backward()
    size = torch.cat([p.grad.abs().flatten() for p in fresh.parameters()])
    moved = torch.cat([(a != b).flatten() for a, b in zip(net.parameters(), model.parameters(), strict=True)])
    n_moving = len(size) - round(0.7 * len(size))
    assert moved.sum() <= n_moving
    assert moved.sum() > 0.9 * n_moving
    limit = size.sort(descending=True).values[n_moving - 1]
    assert (size[moved] >= limit * (1 - 1e-3)).all()


def test_salun_of_all_weights_is_random_labels(model, whole, monkeypatch):
    for module in (salun, random_labels):
        monkeypatch.setattr(module, "other_labels", lambda labels, n: (labels + 1) % n)
        monkeypatch.setattr(module, "interleaved", lambda retain, wrong: [*wrong, *retain])
    same = ["epochs=2", "lr=0.05", "weight_decay=0.1"]
    net, other = unlearned("salun", model, whole, "share=1", *same), unlearned("random_labels", model, whole, *same)
    assert_same(net, other, model)


def test_l1_sparse(model, whole):
    images, labels = batch_of(whole.retain)
    net = unlearned("l1_sparse", model, whole, "epochs=5", "lr=0.05", "alpha=0.01")
    expected = copy.deepcopy(model).train()
    optimizer = optimizer_of(expected, 0.05)
    for epoch, rate in enumerate(falling(0.05, 5)):
        penalty = 0.01 * (1 - epoch / 5) * sum(p.abs().sum() for p in expected.parameters())
        step(optimizer, F.cross_entropy(expected(images), labels) + penalty, rate)
    assert_same(net, expected, model, atol=1e-3)  # |w| has no slope at 0: near it the sign decides


def test_a_larger_l1_penalty_leaves_smaller_weights(model, whole):
    def norm(alpha):
        net = unlearned("l1_sparse", model, whole, f"alpha={alpha}", "epochs=20", "lr=0.05")
        return sum(parameter.abs().sum() for parameter in net.parameters())

    assert norm(0.05) < 0.5 * norm(0)


LAST_TWO = {"fc.weight", "fc.bias", "layer4.1.conv2.weight", "layer4.1.bn2.weight", "layer4.1.bn2.bias"}


def test_names_of_the_last_layers(resnet):
    assert names_of_last(resnet, 1, IMAGES) == {"fc.weight", "fc.bias"}
    assert names_of_last(resnet, 2, IMAGES) == LAST_TWO
    assert names_of_last(resnet, 99, IMAGES) == {name for name, _ in resnet.named_parameters()}
    with pytest.raises(InputError, match="k is 0"):
        names_of_last(resnet, 0, IMAGES)


@pytest.mark.parametrize("name", ["cf_k", "eu_k"])
def test_only_the_last_layers_are_trained(name, resnet, whole):
    net = unlearned(name, resnet, whole, "k=2", "epochs=3")
    assert changed(net, resnet) & {key for key, _ in resnet.named_parameters()} == LAST_TWO
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_cf_k_resets_nothing_and_eu_k_what_it_trains(resnet, whole):
    assert not changed(unlearned("cf_k", resnet, whole, "k=2", plan=Plan(0)), resnet)
    used = copy.deepcopy(resnet)
    with torch.no_grad():
        for parameter in used.parameters():
            parameter += 1
    nets = [unlearned("eu_k", net, whole, "k=2", plan=Plan(0)) for net in (resnet, used)]
    for name, parameter in nets[0].named_parameters():
        assert torch.equal(parameter, nets[1].get_parameter(name)) == (name in LAST_TWO), name


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(12, 5), nn.Linear(5, 10)

    def forward(self, images):
        pooled = F.adaptive_avg_pool2d(images / 255, 2).flatten(1)
        return self.out(self.hidden(pooled).tanh())


def gradient_of(net, loss):
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(net.parameters()))])


@pytest.mark.parametrize("size", [1, 4])
def test_influence_is_the_step_with_the_dense_inverse(size):
    torch.manual_seed(2)
    model = Small().double()
    loaders = make_loaders(dataset(24, 1), dataset(8, 2), dataset(8, 3), batch_size=24, loader=TensorLoader)
    settings = ["damping=0.05", "alpha=0.5", f"size={size}", "n_gradients=99"]
    net = unlearned("influence", model, loaders, *settings)

    torch.manual_seed(SEED)
    (batch,) = list(loaders.retain)  # in the order in which the method meets them
    retain, labels = batch["image"].double(), batch["age_group"]
    forget, theirs = loaders.forget.dataset.images.double(), loaders.forget.dataset.labels
    parts = zip(retain.split(size), labels.split(size), strict=True)
    rows = torch.stack([gradient_of(model, F.cross_entropy(model(x), y)) for x, y in parts])
    fisher = 0.05 * torch.eye(rows.shape[1], dtype=torch.float64) + rows.T @ rows / len(rows)
    difference = gradient_of(model, F.cross_entropy(model(forget), theirs))
    difference -= gradient_of(model, F.cross_entropy(model(retain), labels))
    expected = 0.5 * 8 / 32 * torch.linalg.solve(fisher, difference)
    found = torch.cat([(a - b).flatten() for a, b in zip(net.parameters(), model.parameters(), strict=True)])
    torch.testing.assert_close(found.detach(), expected, rtol=1e-6, atol=1e-9)


class Convex(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(6, 3, bias=False, dtype=torch.float64)
        nn.init.zeros_(self.out.weight)

    def forward(self, images):
        return self.out(images.flatten(1))


def optimum(data, labels):
    """Of logistic regression with a weight decay of 0.01."""
    net = Convex()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=200, tolerance_grad=1e-10)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(net(data), labels) + 0.005 * net.out.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return net


def test_influence_moves_a_convex_problem_to_where_retraining_ends():
    torch.manual_seed(0)
    data = torch.randn(3000, 6, 1, 1, dtype=torch.float64)
    labels = torch.multinomial((data.flatten(1) @ torch.randn(6, 3, dtype=torch.float64)).softmax(1), 1)[:, 0]
    labels[:100] = 0  # what is to be forgotten says something else than the rest
    original, retrained = optimum(data, labels), optimum(data[100:], labels[100:])
    parts = (TensorDataset(data[rows], labels[rows]) for rows in (slice(100, None), slice(100)))
    retain, forget = (DataLoader(part, 64, shuffle=True) for part in parts)
    method = get_method("influence", ["damping=0.01", "n_gradients=2900"])
    net = method(copy.deepcopy(original), Loaders(retain, forget, forget), seed=SEED)
    before, after = ((one.out.weight - retrained.out.weight).norm() for one in (original, net))
    assert after < 0.35 * before
