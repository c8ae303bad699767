"""What each method does to the weights, against its equation written out step by step in plain torch."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kit.archive import state_hash
from kit.checkpoint import unlearn_once
from kit.competition import TensorLoader, make_loaders
from kit.errors import InputError
from kit.methods import get_method
from kit.methods.shared.surgery import add_noise, reset_parameters
from kit.plan import Plan, planned_phases
from local_eval.models import ARCHITECTURES, build, tinyconv
from tests.conftest import dataset

SEED, MOMENTUM, DECAY = 7, 0.9, 0.0005


@pytest.fixture
def whole():
    """Loaders of one batch each, so that the order of the examples does not matter."""
    return make_loaders(dataset(40, 1), dataset(40, 2), dataset(40, 3), batch_size=40, loader=TensorLoader)


def batch_of(loader):
    return loader.dataset.images.float(), loader.dataset.labels


def unlearned(name, model, loaders, *settings):
    return get_method(name, settings)(copy.deepcopy(model), loaders, seed=SEED)


def cosine(lr, n_steps):
    return [lr * (1 + math.cos(math.pi * t / n_steps)) / 2 for t in range(n_steps)]


def descend(net, loss, rates, decay=DECAY):
    """Momentum SGD with weight decay, `loss(net)` at every step; changes net."""
    net.train()
    velocity = [torch.zeros_like(p) for p in net.parameters()]
    for rate in rates:
        gradients = torch.autograd.grad(loss(net), list(net.parameters()))
        with torch.no_grad():
            for p, g, v in zip(net.parameters(), gradients, velocity, strict=True):
                v.mul_(MOMENTUM).add_(g + decay * p)
                p.sub_(rate * v)
    return net


def assert_same(net, expected, model):
    """Equal up to rounding, and far from where both started."""
    moved = 0.0
    for key, tensor in expected.state_dict().items():
        torch.testing.assert_close(
            net.state_dict()[key], tensor, rtol=1e-4, atol=2e-5, msg=lambda m, k=key: f"{k}: {m}"
        )
        moved = max(moved, (tensor - model.state_dict()[key]).abs().max().item())
    assert moved > 1e-2


def test_finetune(model, whole):
    images, labels = batch_of(whole.retain)
    net = unlearned("finetune", model, whole, "epochs=3", "lr=0.05")
    expected = descend(copy.deepcopy(model), lambda net: F.cross_entropy(net(images), labels), cosine(0.05, 3))
    assert_same(net, expected, model)


def test_finetune_with_the_settings_of_the_source(model, whole):
    settings = ["epochs=1", "lr=1e-5", "weight_decay=0.01", "momentum=0"]
    net = unlearned("finetune", model, whole, *settings)
    images, labels = batch_of(whole.retain)
    reference = copy.deepcopy(model).train()
    loss = F.cross_entropy(reference(images), labels)
    (gradient,) = torch.autograd.grad(loss, [reference.fc.weight])
    change = net.fc.weight - model.fc.weight
    torch.testing.assert_close(change, -1e-5 * (gradient + 0.01 * model.fc.weight), rtol=0.02, atol=2e-8)


def test_negative_gradient(model, whole):
    images, labels = batch_of(whole.forget)
    net = unlearned("negative_gradient", model, whole, "epochs=4", "lr=0.1")
    expected = descend(copy.deepcopy(model), lambda net: -F.cross_entropy(net(images), labels), cosine(0.1, 4))
    assert_same(net, expected, model)
    after, before = (F.cross_entropy(copy.deepcopy(m).train()(images), labels) for m in (net, model))
    assert after > before + 0.1


@pytest.mark.parametrize(("to_zero", "to_original"), [(0.3, 0.0), (0.0, 4.0), (0.3, 4.0)])
def test_l2_penalty(model, whole, to_zero, to_original):
    images, labels = batch_of(whole.retain)

    def loss(net):
        value = F.cross_entropy(net(images), labels)
        for p, start in zip(net.parameters(), model.parameters(), strict=True):
            value = value + to_zero / 2 * (p**2).sum() + to_original / 2 * ((p - start.detach()) ** 2).sum()
        return value

    settings = ["epochs=4", "lr=0.05", f"to_zero={to_zero}", f"to_original={to_original}"]
    net = unlearned("l2_penalty", model, whole, *settings)
    assert_same(net, descend(copy.deepcopy(model), loss, cosine(0.05, 4), decay=0.0), model)


def test_l2_penalties_pull_where_they_say(model, whole):
    def distance(*settings):
        net = unlearned("l2_penalty", model, whole, "epochs=20", "lr=0.05", *settings)
        pairs = list(zip(net.parameters(), model.parameters(), strict=True))
        return sum((p**2).sum() for p, _ in pairs).item(), sum(((p - q) ** 2).sum() for p, q in pairs).item()

    free, pulled, held = distance("to_zero=0"), distance("to_zero=1"), distance("to_zero=0", "to_original=3")
    assert pulled[0] < 0.7 * free[0]
    assert held[1] < 0.5 * free[1]


def test_random_perturbation(model, whole):
    images, labels = batch_of(whole.retain)
    net = unlearned("random_perturbation", model, whole, "epochs=2", "lr=0.05", "beta=0.4")
    expected = copy.deepcopy(model)
    torch.manual_seed(SEED)
    with torch.no_grad():
        for parameter in expected.parameters():
            spread = (parameter - parameter.mean()).square().mean().sqrt()
            parameter += 0.4 * spread * torch.randn(parameter.shape)
    descend(expected, lambda net: F.cross_entropy(net(images), labels), cosine(0.05, 2))
    assert_same(net, expected, model)


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


def kl(teacher_logits, student_logits):
    p, q = teacher_logits.softmax(1), student_logits.softmax(1)
    return (p * (p.log() - q.log())).sum(1).mean()


def fresh_teacher(model):
    torch.manual_seed(SEED)
    teacher = copy.deepcopy(model)
    for module in teacher.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
    return teacher.train()


def test_stochastic_teacher(model, whole):
    forget, _ = batch_of(whole.forget)
    retain, labels = batch_of(whole.retain)
    settings = ["forget_epochs=2", "forget_lr=0.1", "epochs=3", "lr=0.05", "alpha=0.5"]
    net = unlearned("stochastic_teacher", model, whole, *settings)
    expected = copy.deepcopy(model)
    teacher_says = fresh_teacher(model)(forget).detach()
    original_says = copy.deepcopy(model).eval()(retain).detach()
    descend(expected, lambda net: kl(teacher_says, net(forget)), cosine(0.1, 2))

    def repair(net):
        logits = net(retain)
        return F.cross_entropy(logits, labels) + 0.5 * kl(original_says, logits)

    descend(expected, repair, cosine(0.05, 3))
    assert_same(net, expected, model)


def test_the_student_comes_to_imitate_its_teacher_on_the_forget_set(model, whole):
    forget, labels = batch_of(whole.forget)
    descend(model, lambda net: F.cross_entropy(net(forget), labels), [0.2] * 40)
    target = fresh_teacher(model)(forget).detach()
    net = unlearned("stochastic_teacher", model, whole, "forget_epochs=20", "forget_lr=0.2", "epochs=0")
    after, before = (kl(target, copy.deepcopy(m).train()(forget)) for m in (net, model))
    assert after < 0.1 * before


def test_a_larger_alpha_keeps_the_repaired_student_nearer_to_the_original(model, whole):
    retain, _ = batch_of(whole.retain)
    target = copy.deepcopy(model).eval()(retain).detach()
    settings = ["forget_epochs=5", "epochs=30", "lr=0.05"]
    free, tied = (unlearned("stochastic_teacher", model, whole, *settings, f"alpha={a}") for a in (0, 20))
    assert kl(target, tied.train()(retain)) < 0.3 * kl(target, free.train()(retain))


def test_retrain(model, whole):
    images, labels = batch_of(whole.retain)
    net = unlearned("retrain", model, whole, "epochs=10", "lr=0.05")
    expected = fresh_teacher(model)
    rates = [0.05 * min(t / 2, (10 - t) / 8) for t in range(10)]  # up over a fifth of the steps, then down
    descend(expected, lambda net: F.cross_entropy(net(images), labels), rates)
    assert_same(net, expected, model)


def test_retraining_keeps_nothing_of_the_original(model, loaders):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.add_(1)
    nets = [unlearn_once(get_method("retrain"), m, loaders, seed=0, index=0)[0] for m in (model, other)]
    assert len({state_hash(net.state_dict()) for net in nets}) == 1


def test_retraining_learns_the_retain_set(model, loaders):
    net, _ = unlearn_once(get_method("retrain", ["epochs=40"]), model, loaders, seed=0, index=0)
    images, labels = batch_of(loaders.retain)
    assert (net.eval()(images).argmax(1) == labels).float().mean() > 0.9


def test_bfloat16_comes_near_and_is_not_the_same(model, whole):
    settings = ["epochs=3", "lr=0.05"]
    full, half = (unlearned("finetune", model, whole, *settings, f"bfloat16={flag}") for flag in ("no", "yes"))
    assert all(p.dtype == torch.float32 for p in half.parameters())
    assert not torch.equal(full.fc.weight, half.fc.weight)
    torch.testing.assert_close(full.fc.weight, half.fc.weight, rtol=0.1, atol=0.01)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_drawn_anew_are_those_of_another_net(architecture):
    used = build(architecture, 10, seed=0)
    with torch.no_grad():
        for tensor in used.state_dict().values():
            tensor.add_(3)
    torch.manual_seed(1)
    reset_parameters(used)
    for module in used.modules():
        if isinstance(module, nn.BatchNorm2d):
            fresh = nn.BatchNorm2d(module.num_features).state_dict()
            assert all(torch.equal(module.state_dict()[key], fresh[key]) for key in fresh)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5  # both layers' default: uniform between plus and minus this
            assert module.weight.abs().max().item() == pytest.approx(bound, rel=0.05)
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
    again = build(architecture, 10, seed=5)
    torch.manual_seed(1)
    reset_parameters(again)
    assert state_hash(again.state_dict()) == state_hash(used.state_dict())


def test_a_module_that_cannot_draw_its_parameters_is_told():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(InputError, match=r"1 \(Scaled\) has parameters but no reset_parameters"):
        reset_parameters(nn.Sequential(nn.Linear(2, 2), Scaled()))


@pytest.mark.parametrize(
    ("plan", "wanted", "shared"),
    [
        (None, (8, 300), [8, 300]),
        (Plan(), (7.2, 10), [8, 10]),
        (Plan(100), (50, 150), [25, 75]),
        (Plan(2), (8, 300), [0, 2]),
        (Plan(7, fill=True), (1, 1, 1), [2, 2, 3]),
        (Plan(0), (8, 300), [0, 0]),
        (Plan(40, fill=True), (5, 15), [10, 30]),
        (Plan(5), (0, 0), [0, 0]),
    ],
)
def test_phases_share_the_granted_steps_in_proportion(plan, wanted, shared):
    assert planned_phases(plan, *wanted) == shared


@pytest.mark.parametrize(
    ("plan", "wanted", "least", "shared"),
    [
        (None, (8, 300), (1, 1), [8, 300]),
        (None, (0, 300), (1,), [1, 300]),
        (Plan(6), (8, 300), (1,), [1, 5]),
        (Plan(2), (8, 300), (2,), [2, 0]),
        (Plan(3), (1, 2, 300), (1, 1), [1, 1, 1]),
        (Plan(1), (8, 300), (1, 1), [1, 1]),
        (Plan(0), (8, 300), (1,), [1, 0]),
        (Plan(100), (50, 150), (1, 1), [25, 75]),
    ],
)
def test_phases_that_need_steps_get_them_within_the_grant_where_it_has_room(plan, wanted, least, shared):
    assert planned_phases(plan, *wanted, least=least) == shared
