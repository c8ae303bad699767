"""What the entries of the competition do to the weights, against their recipes written out in plain torch."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kit.competition import TensorLoader, make_loaders
from kit.methods import amnesiacs, fanchuan, get_method, kookmin, pseudo_label, seif, sun
from kit.methods.shared.data import relabelled
from kit.plan import Plan
from local_eval.models import resnet18_narrow
from tests.conftest import dataset

SEED = 7


@pytest.fixture
def whole():
    """Loaders of one batch each, so that the order of the examples does not matter."""
    return make_loaders(dataset(40, 1), dataset(40, 2), dataset(40, 3), batch_size=40, loader=TensorLoader)


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(3)
    net = resnet18_narrow()
    with torch.no_grad():
        for parameter in net.parameters():  # as after training: no BatchNorm at its start, no two tensors alike
            parameter += 0.05 * torch.randn(parameter.shape)
    return net.eval()


def batch_of(loader):
    return loader.dataset.images.float(), loader.dataset.labels


def unlearned(name, model, loaders, *settings, plan=None):
    return get_method(name, settings)(copy.deepcopy(model), loaders, seed=SEED, plan=plan)


def changed(net, model):
    """Names of the state's entries that differ."""
    pairs = zip(net.state_dict().items(), model.state_dict().values(), strict=True)
    return {name for (name, tensor), old in pairs if not torch.equal(tensor, old)}


def optimizer_of(net, lr, decay=5e-4):
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=decay)


def step(optimizer, loss, lr=None):
    if lr is not None:
        optimizer.param_groups[0]["lr"] = lr
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def assert_same(net, expected, model, atol=2e-5):
    """Equal up to rounding, BatchNorm's statistics too, and not where both started."""
    for key, tensor in expected.state_dict().items():
        torch.testing.assert_close(
            net.state_dict()[key], tensor, rtol=1e-4, atol=atol, msg=lambda m, k=key: f"{k}: {m}"
        )
    moved = max((a - b).abs().max().item() for a, b in zip(net.parameters(), model.parameters(), strict=True))
    assert moved > 1e-3


def kl(p, q):
    return (p * (p.log() - q.log())).sum(1).mean()


# -- fanchuan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [0.0, 0.85])
def test_fanchuan(model, whole, reverse):
    (forget, _), (retain, labels) = batch_of(whole.forget), batch_of(whole.retain)
    settings = ["rounds=3", f"reverse_kl={reverse}", "uniform_lr=0.05", "contrast_lr=0.03", "retain_lr=0.04"]
    plan = Plan()
    net = unlearned("fanchuan", model, whole, *settings, plan=plan)
    assert plan.wanted == 1 + 3 * 2

    expected = copy.deepcopy(model).train()
    first, against, repair = (optimizer_of(expected, lr, d) for lr, d in ((0.05, 0.0), (0.03, 0.0), (0.04, 0.01)))
    p, uniform = expected(forget).softmax(1), torch.full((40, 10), 0.1)
    step(first, kl(uniform, p) + reverse * kl(p, uniform))
    for turn in range(3):
        rate = 1e-6 + (0.03 - 1e-6) * (1 + math.cos(math.pi * turn / 3)) / 2
        ours = expected(forget)  # the forget batch first: BatchNorm's statistics depend on it
        similarity = ours @ expected(retain).detach().T / 1.15
        step(against, -similarity.log_softmax(1).mean(), rate)
        step(repair, F.cross_entropy(expected(retain), labels))
    assert_same(net, expected, model)


def test_fanchuans_divergences_are_zero_at_uniform_outputs(model, whole):
    images, labels = batch_of(whole.forget)
    model.fc.weight.data.zero_()
    model.fc.bias.data.fill_(3.0)
    loss = fanchuan._divergence_from_uniform(model, images, labels, reverse_kl=0.85)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_fanchuan_takes_whole_epochs_of_larger_retain_batches(model, loaders, monkeypatch):
    calls = []
    monkeypatch.setattr(fanchuan, "train", lambda net, loader, n, *a, **k: calls.append((loader.batch_size, n)) or net)
    plan = Plan()
    unlearned("fanchuan", model, loaders, "retain_batch=20", plan=plan)
    assert calls == [(8, 3), *[(8, 3), (20, 3)] * 8]
    assert plan.wanted == sum(n for _, n in calls)


# -- kookmin ----------------------------------------------------------------------------------------------------------


def gradients_told_apart(model, whole):
    net = copy.deepcopy(model).eval()
    (forget, theirs), (retain, labels) = batch_of(whole.forget), batch_of(whole.retain)
    (F.cross_entropy(net(retain), labels) - F.cross_entropy(net(forget), theirs)).backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def test_kookmin_redraws_a_quota_of_each_convolution(resnet, whole):
    net = unlearned("kookmin", resnet, whole, "epochs=0")
    gradients = gradients_told_apart(resnet, whole)
    convolutions = {f"{name}.weight" for name, m in resnet.named_modules() if isinstance(m, nn.Conv2d)}
    assert changed(net, resnet) == convolutions
    for name in convolutions:
        old, new, gradient = resnet.get_parameter(name), net.get_parameter(name), gradients[name].abs()
        redrawn = old != new
        assert redrawn.sum() == round(0.3 * old.numel())
        assert gradient[redrawn].max() <= gradient[~redrawn].min() * (1 + 1e-3), name
        spread = (2 / (old.shape[0] * old.shape[2] * old.shape[3])) ** 0.5
        if redrawn.sum() > 1000:
            assert new[redrawn].std().item() == pytest.approx(spread, rel=0.1)


def test_kookmin_trains_the_other_weights_of_convolutions_at_a_tenth(model, whole):
    images, labels = batch_of(whole.retain)
    net = unlearned("kookmin", model, whole, "lr=0.1", "weight_decay=0.05")
    expected = unlearned("kookmin", model, whole, "epochs=0")
    redrawn = {name: p != model.get_parameter(name) for name, p in expected.named_parameters()}
    optimizer = optimizer_of(expected.train(), 0.1, decay=0.0)
    for rate in (1 / 3, 2 / 3, 1, 2 / 3, 1 / 3):
        optimizer.zero_grad()
        F.cross_entropy(expected(images), labels).backward()
        for name, parameter in expected.named_parameters():
            if parameter.ndim == 4:
                parameter.grad[~redrawn[name]] *= 0.1
            parameter.grad += 0.05 * parameter.detach()
        optimizer.param_groups[0]["lr"] = 0.1 * rate
        optimizer.step()
    assert_same(net, expected, model)


def test_kookmins_gradients_are_over_as_many_retain_as_forget_examples(model, loaders, monkeypatch):
    sizes = []

    def counted(net, images, labels):
        sizes.append(len(labels))
        return F.cross_entropy(net(images), labels)

    monkeypatch.setattr(kookmin, "cross_entropy", counted)
    unlearned("kookmin", model, loaders, "epochs=0")
    assert sizes == [8, 8, 4] * 2


@pytest.mark.parametrize(("plan", "each"), [(Plan(1), 1), (Plan(12), 1), (Plan(30), 2), (Plan(90, fill=True), 3)])
def test_kookmins_gradients_are_over_as_many_batches_of_both_sets_under_any_plan(
    plan, each, model, loaders, monkeypatch
):
    sizes, steps = [], []

    def counted(net, images, labels):
        sizes.append(len(labels))
        return F.cross_entropy(net(images), labels)

    monkeypatch.setattr(kookmin, "cross_entropy", counted)
    monkeypatch.setattr(kookmin, "fine_tune", lambda net, loader, n, **_: steps.append(n))
    unlearned("kookmin", model, loaders, plan=plan)
    assert sizes == [8, 8, 4][:each] * 2
    assert 2 * each + steps[0] == max(2, plan.limit)


# -- seif -------------------------------------------------------------------------------------------------------------


def test_seif(model, whole, monkeypatch):
    images, labels = batch_of(whole.retain)
    stds = []

    def shift(parameters, std):  # instead of noise, whose draws would have to be foreseen
        stds.append(std)
        with torch.no_grad():
            for parameter in parameters:
                parameter += std

    monkeypatch.setattr(seif, "add_normal", shift)
    net = unlearned("seif", model, whole, "lr=0.2")
    expected = copy.deepcopy(model).train()
    optimizer = optimizer_of(expected, 0.2)
    shift([expected.stages[0][0].weight], 0.6)
    for epoch in range(4):
        if epoch == 3:
            shift([expected.stages[0][0].weight], 0.005)
        weight = torch.tensor([1.0 if label == 0 else 0.05 for label in labels]).mean()
        loss = weight * F.cross_entropy(expected(images), labels)
        step(optimizer, loss, 0.2 * (1 + math.cos(math.pi * epoch / 4)) / 2)
    assert stds == [0.6, 0.005] * 2
    assert_same(net, expected, model)


def test_seifs_noise_is_on_the_first_convolution_alone(resnet, whole):
    net = unlearned("seif", resnet, whole, plan=Plan(0))
    assert changed(net, resnet) == {"conv1.weight"}
    assert (net.conv1.weight - resnet.conv1.weight).std().item() == pytest.approx(0.6, rel=0.1)


# -- sebastian --------------------------------------------------------------------------------------------------------


def test_sebastian_keeps_the_largest_hundredth_of_all_weights_together(resnet, whole):
    net = unlearned("sebastian", resnet, whole, plan=Plan(0))
    names = [
        f"{name}.{kind}"
        for name, module in resnet.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        for kind, _ in module.named_parameters()
    ]
    assert "fc.bias" in names
    every = torch.cat([resnet.get_parameter(name).abs().flatten() for name in names]).sort().values
    limit = every[round(0.99 * len(every)) - 1]
    for name in names:
        old, new = resnet.get_parameter(name), net.get_parameter(name)
        kept = old.abs() > limit
        assert torch.equal(new[kept], old[kept].half().float()), name
        if name == "fc.bias":
            assert not new[~kept].any()
            continue
        bound = old[0].numel() ** -0.5
        assert new[~kept].abs().max() <= bound * 1.001
        assert new[~kept].std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert not torch.isclose(new[~kept], old[~kept], rtol=1e-3).float().mean() > 0.1


def test_sebastian(model, whole):
    images, labels = batch_of(whole.retain)
    plan = Plan()
    net = unlearned("sebastian", model, whole, "share=0.0", "lr=0.02", plan=plan)
    assert plan.wanted == 4  # int(3.2 * 1) + 1
    expected, teacher = copy.deepcopy(model).train(), copy.deepcopy(model).eval()
    weights = torch.bincount(labels, minlength=10).float() ** -0.1
    optimizer = optimizer_of(expected, 0.02)
    p = teacher(images).softmax(1).detach()
    for _ in range(4):
        q = expected(images).softmax(1)
        gap = (q * q.log()).sum(1) - (p * p.log()).sum(1)
        step(optimizer, F.nll_loss(q.log(), labels, weight=weights) + (gap**2).mean())
    for tensor in expected.state_dict().values():
        tensor.copy_(tensor.half())
    for key, tensor in expected.state_dict().items():
        torch.testing.assert_close(net.state_dict()[key], tensor, rtol=2e-3, atol=2e-5)
    assert changed(expected, model)


def test_sebastians_result_is_rounded_to_float16(model, loaders):
    net = unlearned("sebastian", model, loaders)
    assert all(torch.equal(tensor, tensor.half().to(tensor.dtype)) for tensor in net.state_dict().values())


# -- toshi_k ----------------------------------------------------------------------------------------------------------


def test_transposed_weights(resnet, whole):
    net = unlearned("transpose", resnet, whole, plan=Plan(0))
    for name, module in resnet.named_modules():
        if isinstance(module, nn.Conv2d):
            assert torch.equal(net.get_parameter(f"{name}.weight"), module.weight.transpose(2, 3))
    square = {f"{n}.weight" for n, m in resnet.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)}
    assert changed(net, resnet) == square


def test_transposed_weights_are_trained_with_a_cosine_once_an_epoch(model, whole):
    images, labels = batch_of(whole.retain)
    net = unlearned("transpose", model, whole, "lr=0.1")
    expected = copy.deepcopy(model).train()
    with torch.no_grad():
        for stage in expected.stages:
            stage[0].weight.copy_(stage[0].weight.transpose(2, 3).clone())
    optimizer = optimizer_of(expected, 0.1)
    for rate in (1.0, 0.75, 0.25):
        step(optimizer, F.cross_entropy(expected(images), labels), 0.1 * rate)
    assert_same(net, expected, model)


def test_pseudo_labels_are_the_labellers_and_never_the_forget_sets(model, loaders, monkeypatch):
    seen = []
    monkeypatch.setattr(pseudo_label, "relabelled", lambda *given: seen.append(relabelled(*given)) or seen[-1])
    net = unlearned("pseudo_label", model, loaders)
    labeller = unlearned("transpose", model, loaders).eval()  # from the same seed, which draws nothing else before
    ((*batches,),) = seen
    assert sum(len(labels) for _, labels in batches) == 20
    assert all(torch.equal(labels, labeller(images).argmax(1)) for images, labels in batches)
    loaders.forget.dataset.labels.fill_(0)
    assert not changed(unlearned("pseudo_label", model, loaders), net)


# -- amnesiacs --------------------------------------------------------------------------------------------------------


def test_amnesiacs_reset_the_first_and_the_last_layer(resnet, whole):
    net = unlearned("amnesiacs", resnet, whole, plan=Plan(0))
    assert changed(net, resnet) == {"conv1.weight", "fc.weight", "fc.bias"}


def test_amnesiacs_reset_a_single_layer_once(whole, monkeypatch):
    resets = []
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda layer: resets.append(layer))
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
    resets.clear()
    amnesiacs.unlearn(net, *whole, seed=1, plan=Plan(0))
    assert resets == [net[1]]


def test_amnesiacs(model, whole):
    (retain, labels), (validation, _) = batch_of(whole.retain), batch_of(whole.validation)
    net = unlearned("amnesiacs", model, whole, "warm_up_lr=0.2", "lr=0.1")
    teacher = copy.deepcopy(model).eval()
    expected = unlearned("amnesiacs", model, whole, plan=Plan(0)).train()
    optimizer = optimizer_of(expected, 0.2)
    for _ in range(3):
        target = (teacher(validation) / 5).softmax(1).detach()
        step(optimizer, kl(target, (expected(validation) / 5).softmax(1)))
    optimizer = optimizer_of(expected, 0.1)
    for rate in (1.0, 0.75, 0.25):
        target, logits = (teacher(retain) / 5).softmax(1).detach(), expected(retain)
        soft = -(target * (logits / 5).log_softmax(1)).sum(1).mean()
        loss = F.cross_entropy(logits, labels) + soft + kl(target, (logits / 5).softmax(1))
        step(optimizer, loss, 0.1 * rate)
    assert_same(net, expected, model)


# -- sun --------------------------------------------------------------------------------------------------------------


def test_sun_trains_a_choice_of_tensors_and_in_the_end_all(resnet, whole, monkeypatch):
    epochs, noisy = [], []
    names = {id(p): name for name, p in resnet.named_parameters()}

    def note(net, loader, n_steps, *, lr, **options):
        epochs.append((lr, {name for name, p in net.named_parameters() if p.requires_grad}))
        return net

    def note_noise(parameters, std):
        assert std == 0.04
        noisy.append([names[id(parameter)] for parameter in parameters])

    monkeypatch.setattr(sun, "fine_tune", note)
    monkeypatch.setattr(sun, "add_normal", note_noise)
    resnet = copy.deepcopy(resnet)
    names = {id(p): name for name, p in resnet.named_parameters()}
    sun.unlearn(resnet, *whole, seed=SEED)

    norms = {name for name in names.values() if "bn" in name}
    shortcut_norms = {name for name in names.values() if "downsample.1" in name}
    early, late = [chosen for _, chosen in epochs[:5]], [chosen for _, chosen in epochs[5:]]
    assert [lr for lr, _ in epochs] == [2e-4] * 8 + [1e-3]
    assert all(norms <= chosen and len(chosen - norms) == 9 for chosen in early)
    assert any(shortcut_norms & chosen for chosen in early)
    assert late == [set(names.values())] * 4
    assert len({frozenset(chosen) for chosen in early}) > 1

    assert len(noisy) == 4  # none in the first epoch
    for epoch, found in enumerate(noisy, start=1):
        before = set().union(*early[:epoch])
        assert set(found) <= early[epoch] - before - norms
        assert len(found) <= 6
    assert any(noisy)


def test_sun_holds_what_it_does_not_train(resnet, whole):
    net = unlearned("sun", resnet, whole, "partial_epochs=1", "epochs=0")
    parameters = {name for name, _ in resnet.named_parameters()}
    moved = changed(net, resnet) & parameters
    norms = {name for name in parameters if "bn" in name}
    assert norms <= moved
    assert 7 <= len(moved - norms - {"fc.weight", "fc.bias"}) <= 9
    assert all(parameter.requires_grad for parameter in net.parameters())


# -- forget-set-free --------------------------------------------------------------------------------------------------


def test_forget_free_redraws_six_layers_within(resnet, whole):
    net = unlearned("forget_free", resnet, whole, "cycles=1", plan=Plan(0))
    convolutions = {f"{name}.weight" for name, m in resnet.named_modules() if isinstance(m, nn.Conv2d)}
    assert len(changed(net, resnet)) == 6
    assert changed(net, resnet) <= {name for name in convolutions if "downsample" not in name}


def test_forget_free_redraws_more_from_cycle_to_cycle(resnet, whole, monkeypatch):
    counts, redraw = [], nn.Conv2d.reset_parameters
    monkeypatch.setattr(nn.Conv2d, "reset_parameters", lambda layer: counts.append(layer) or redraw(layer))
    unlearned("forget_free", resnet, whole, "growth=2", plan=Plan(0))
    assert len(counts) == 6 + 8 + 10


@pytest.mark.parametrize("noise", [0.0, 200.0])
def test_forget_free_imitates_the_originals_logits(model, whole, noise):
    images, _ = batch_of(whole.retain)
    settings = ["cycles=1", "first_epochs=3", "n_layers=0", "lr=2", f"noise={noise}"]
    net = unlearned("forget_free", model, whole, *settings)
    teacher, expected = copy.deepcopy(model).eval(), copy.deepcopy(model).train()
    if noise:  # only that it counts: its draws stand between those of the loader
        assert changed(net, unlearned("forget_free", model, whole, *settings[:-1], "noise=0.0"))
        return
    optimizer = optimizer_of(expected, 2.0)
    for turn in range(3):
        loss = ((expected(images) - teacher(images).detach()) ** 2).mean()
        step(optimizer, loss, 2.0 * (1 + math.cos(math.pi * turn / 3)) / 2)
    assert_same(net, expected, model)


def test_forget_free_does_not_use_the_forget_set(model, loaders):
    net = unlearned("forget_free", model, loaders)
    loaders.forget.dataset.images.fill_(0)
    assert not changed(unlearned("forget_free", model, loaders), net)


# -- random mask ------------------------------------------------------------------------------------------------------


def test_a_random_mask_zeroes_half_of_everything_but_batch_norm(resnet, whole):
    net = unlearned("random_mask", resnet, whole, plan=Plan(0))
    for name, old in resnet.named_parameters():
        new = net.get_parameter(name)
        if "bn" in name:
            assert torch.equal(new, old)
            continue
        zero = new == 0
        assert torch.equal(new[~zero], old[~zero])
        margin = 4 * (0.25 / old.numel()) ** 0.5
        assert abs(zero.float().mean().item() - 0.5) <= margin, name


def test_a_random_mask_is_trained_with_adam(model, whole):
    images, labels = batch_of(whole.retain)
    net = unlearned("random_mask", model, whole, "epochs=4", "lr=0.01", "min_lr=0.001", "weight_decay=0.02")
    expected = unlearned("random_mask", model, whole, "epochs=0").train()
    optimizer = torch.optim.Adam(expected.parameters(), lr=0.01, weight_decay=0.02)
    for turn in range(4):
        rate = 0.001 + 0.009 * (1 + math.cos(math.pi * turn / 4)) / 2
        step(optimizer, F.cross_entropy(expected(images), labels), rate)
    assert_same(net, expected, model, atol=2e-4)  # where a gradient is near 0 Adam's step is not
