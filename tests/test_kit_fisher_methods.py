"""Fisher masking, selective synaptic dampening, Fisher forgetting and SSSE against their equations, with gradients of
one sample at a time."""

import copy
import warnings

import pytest
import torch
import torchvision
from torch import nn

from kit.competition import ExampleDataset, TensorLoader, make_loaders
from kit.errors import InputError
from kit.fisher.layers import head
from kit.methods import get_method, influence, ssse
from kit.plan import Plan
from tests.conftest import dataset
from tests.reference_fisher import dense_inverse_product, golatkar_diagonal, loop_diagonal, loop_gradients, matrix_of

SEED = 7
METHODS = ["fisher_masking", "ssd", "fisher_forgetting", "ssse"]
WHOLE = {"fisher_masking": ["fisher_epochs=1", "epochs=0"], "ssd": ["fisher_epochs=1"]}


@pytest.fixture
def model(model):
    """With the BatchNorm statistics of its data, so that gradients are of one size."""
    model.train()
    with torch.no_grad():
        for _ in range(30):
            model(dataset(40, 1).images.float())
    return model.eval()


@pytest.fixture
def loaders(request):
    """Of several batches each; the importance of a whole part does not depend on their order."""
    batch_size = getattr(request, "param", 8)
    return make_loaders(dataset(40, 1), dataset(16, 2), dataset(8, 3), batch_size=batch_size, loader=TensorLoader)


any_batches = pytest.mark.parametrize("loaders", [8, 3], indirect=True)  # 3 leaves a last batch of one image


def unlearned(name, model, loaders, *settings, seed=SEED, plan=None):
    """The parameters afterwards, by name."""
    net = copy.deepcopy(model)
    given = {setting.partition("=")[0]: setting for setting in (*WHOLE.get(name, []), *settings)}
    get_method(name, given.values())(net, loaders, seed=seed, plan=plan)
    return {key: tensor.detach() for key, tensor in net.named_parameters()}


def examples(loader):
    return loader.dataset.images.float(), loader.dataset.labels


def importances(model, loaders):
    return (loop_diagonal(model, *examples(loader)) for loader in (loaders.forget, loaders.retain))


@any_batches
@pytest.mark.parametrize("share", [0.02, 0.4])
def test_fisher_masking_zeroes_the_weights_of_largest_excess(share, model, loaders):
    forget, retain = importances(model, loaders)
    found = unlearned("fisher_masking", model, loaders, f"share={share}")
    weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    excess = {name: forget[name] - retain[name] for name in weights}
    threshold = torch.cat([tensor.flatten() for tensor in excess.values()]).quantile(1 - share)
    n_zero = sum((found[name] == 0).sum().item() for name in weights)
    assert n_zero == round(share * sum(p.numel() for p in weights.values()))
    for name, p in model.named_parameters():
        if name not in weights:
            assert torch.equal(found[name], p)
            continue
        clear = (excess[name] - threshold).abs() > 1e-5 * excess[name].abs()  # the others may fall on either side
        assert torch.equal((p * (excess[name] < threshold))[clear], found[name][clear])


def test_fisher_masking_by_kernel_zeroes_whole_kernels(model, loaders):
    forget, retain = importances(model, loaders)
    found = unlearned("fisher_masking", model, loaders, "share=0.1", "per_kernel=true")
    values = {name: forget[name] - retain[name] for name, p in model.named_parameters() if p.ndim > 1}
    kernels = {name: v.mean((2, 3)) if v.ndim == 4 else v for name, v in values.items()}
    cut = min(kernels[name][zeroed(found[name])].min() for name in values if zeroed(found[name]).any())
    for name in values:
        partly = (found[name] == 0).flatten(2).any(2) & ~zeroed(found[name]) if found[name].ndim == 4 else None
        assert partly is None or partly.sum() <= 1  # the share may end inside one kernel
        assert zeroed(found[name])[kernels[name] > cut * (1 + 1e-5)].all()


def zeroed(weight):
    return (weight == 0).flatten(2).all(2) if weight.ndim == 4 else weight == 0


def test_fisher_masking_recovers_on_the_retain_set(model, loaders):
    found = unlearned("fisher_masking", model, loaders, "epochs=60", "lr=0.05", "share=0.1")
    net = copy.deepcopy(model).train()
    net.load_state_dict(found, strict=False)
    images, labels = examples(loaders.retain)
    assert (net(images).argmax(1) == labels).float().mean() > 0.8


@any_batches
@pytest.mark.parametrize("whole_set", [True, False])
@pytest.mark.parametrize(("alpha", "dampening"), [(0.5, 1.0), (1.5, 1.0), (1.2, 0.3)])
def test_ssd_dampens_by_its_formula(whole_set, alpha, dampening, model, loaders):
    forget, other = importances(model, loaders)
    if whole_set:
        both = [torch.cat(pair) for pair in zip(examples(loaders.retain), examples(loaders.forget), strict=True)]
        other = loop_diagonal(model, *both)
    settings = [f"alpha={alpha}", f"dampening={dampening}", f"whole_set={whole_set}"]
    found = unlearned("ssd", model, loaders, *settings)
    n_dampened = 0
    for name, p in model.named_parameters():
        factor = torch.where(
            forget[name] > alpha * other[name], (dampening * other[name] / forget[name]).clamp(max=1), 1.0
        )
        clear = (forget[name] / (alpha * other[name]) - 1).abs() > 1e-4
        torch.testing.assert_close(found[name][clear], (p * factor)[clear], rtol=1e-3, atol=1e-6)
        n_dampened += (factor < 1).sum().item()
    assert n_dampened > 100


def test_ssd_compares_with_the_retain_set_and_alpha_below_lambda_acts_as_lambda(model, loaders):
    plain, same, low, whole = (
        unlearned("ssd", model, loaders, *settings)
        for settings in ([], ["whole_set=false", "alpha=1"], ["alpha=0.3"], ["whole_set=true"])
    )
    assert all(torch.equal(plain[name], same[name]) and torch.equal(plain[name], low[name]) for name in plain)
    assert not all(torch.equal(plain[name], whole[name]) for name in plain)


def test_ssd_warns_where_nothing_is_dampened(model, loaders):
    with pytest.warns(UserWarning, match=r"alpha 3\.5 dampens no parameter: lower it; .* below 3\.5 here$"):
        same = unlearned("ssd", model, loaders, "alpha=3.5", "whole_set=true")
    assert all(torch.equal(same[name], p) for name, p in model.named_parameters())
    with pytest.warns(UserWarning, match="alpha 2 dampens no parameter: lower it$"):
        unlearned("ssd", model, loaders._replace(forget=loaders.retain), "alpha=2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unlearned("ssd", model, loaders, "alpha=3.5")


def test_ssd_with_squared_batch_means(model, loaders):
    means = {}
    for part in ("forget", "retain"):
        images, labels = examples(getattr(loaders, part))
        rows = list(loop_gradients(model, images, labels))
        means[part] = {name: (sum(row[name] for row in rows) / len(rows)).square() for name in rows[0]}
    single = make_loaders(*(loader.dataset for loader in loaders), batch_size=40, loader=TensorLoader)
    found = unlearned("ssd", model, single, "per_sample=false", "whole_set=false", "alpha=1")
    for name, p in model.named_parameters():
        factor = (means["retain"][name] / means["forget"][name]).clamp(max=1).nan_to_num(1.0)
        assert (found[name] - p * factor).norm() < 1e-3 * p.norm() + 1e-6


@pytest.fixture
def noise_of_one(monkeypatch):
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: torch.ones(*shape, **options))


@any_batches
@pytest.mark.parametrize("power", [0.5, 0.25])
@pytest.mark.parametrize("forget_class", [None, 3])
def test_fisher_forgetting_adds_noise_of_the_stated_size(power, forget_class, model, loaders, noise_of_one):
    fisher = golatkar_diagonal(model, examples(loaders.retain)[0])
    settings = ["alpha=0.001", f"power={power}", f"forget_class={forget_class}", "exact=true"]
    found = unlearned("fisher_forgetting", model, loaders, *settings)
    for name, p in model.named_parameters():
        last = name.startswith("fc.")
        variance = 0.001 * (1 / (fisher[name] + 1e-8)).clamp(max=1e2 if last else 1e3) ** (2 * power)
        if p.ndim > 1:
            variance = variance.mean(1, keepdim=True).expand(p.shape).clone()
        mean = p.detach().clone()
        if last and forget_class is not None:
            mean[forget_class], variance[forget_class] = 0, 1e-4
        if last or p.ndim == 1:
            variance *= 10
        torch.testing.assert_close(found[name], mean + variance.sqrt(), rtol=1e-4, atol=1e-6)


class Disorderly(nn.Module):
    """Its head is registered first, a hidden layer has as many channels as there are classes."""

    def __init__(self, hidden=10):
        super().__init__()
        self.out, self.hidden, self.first = nn.Linear(hidden, 10), nn.Linear(8, hidden), nn.Linear(768, 8)

    def forward(self, images):
        return self.out(torch.tanh(self.hidden(torch.tanh(self.first(images.flatten(1) / 255)))))


def test_fisher_forgetting_finds_the_last_layer_wherever_it_is_registered(loaders, noise_of_one):
    torch.manual_seed(0)
    net = Disorderly()
    found = unlearned("fisher_forgetting", net, loaders, "alpha=0.001", "forget_class=3")
    assert torch.equal(found["out.weight"][3], torch.full((10,), 0.001**0.5))
    assert found["out.bias"][3] == pytest.approx(0.001**0.5)
    assert (found["hidden.weight"][3] - net.hidden.weight[3]).std() < 1e-6
    assert (found["first.bias"] - net.first.bias).min() > 0


def test_the_head_of_torchvisions_nets_is_their_last_layer():
    images = torch.randn(1, 3, 64, 64)
    for name, expected in (
        ("resnet18", "fc"),
        ("mobilenet_v2", "classifier.1"),
        ("squeezenet1_1", "classifier.1"),
        ("googlenet", "fc"),
        ("vit_b_16", "heads.head"),
    ):
        options = {"vit_b_16": {"image_size": 64}, "googlenet": {"init_weights": False}}.get(name, {})
        net = getattr(torchvision.models, name)(num_classes=10, **options).eval()
        assert set(head(net, images)) == {f"{expected}.weight", f"{expected}.bias"}, name


@pytest.mark.parametrize("bfloat16", [True, False])
def test_fisher_forgetting_by_the_estimate_comes_near_the_exact_one(bfloat16, model, loaders, noise_of_one):
    exact = unlearned("fisher_forgetting", model, loaders, "alpha=0.001", "exact=true")
    cheap = unlearned("fisher_forgetting", model, loaders, "alpha=0.001", "fisher_epochs=40", f"bfloat16={bfloat16}")
    for name, p in model.named_parameters():
        sizes = [(found[name] - p.detach()).norm().item() for found in (cheap, exact)]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.15), name


def test_fisher_forgetting_leaves_statistics_alone_and_draws_real_noise(model, loaders):
    net = copy.deepcopy(model)
    get_method("fisher_forgetting", ["alpha=0.001"])(net, loaders, seed=SEED)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), model.buffers(), strict=True))
    other = unlearned("fisher_forgetting", model, loaders, "alpha=0.001", seed=8)["stages.2.0.weight"]
    change, theirs = (w - model.stages[2][0].weight for w in (net.stages[2][0].weight, other))
    assert abs(torch.corrcoef(torch.stack([change.flatten(), theirs.flatten()]))[0, 1]) < 0.05
    assert abs(change.mean()) < 4 * change.std() / change.numel() ** 0.5


@any_batches
@pytest.mark.parametrize(("size", "block"), [(1, 0), (1, 900)])
def test_ssse_takes_the_step_of_the_paper(size, block, model, loaders):
    images, labels = (torch.cat(pair) for pair in zip(*map(examples, (loaders.retain, loaders.forget)), strict=True))
    model.stages[:2].requires_grad_(False)  # leaves few enough parameters for dense matrices
    model.stages[2][0].weight.requires_grad_(False)
    gradients = matrix_of(loop_gradients(model, images, labels))
    total = gradients[40:].sum(0, keepdim=True)
    step = 0.5 / 40 * dense_inverse_product(gradients, total, 0.1, block or None)[0]
    settings = ["eps=0.5", "damping=0.1", f"size={size}", f"block={block}"]
    found = unlearned("ssse", model, loaders, *settings)
    named = dict(model.named_parameters())
    free = [name for name, p in named.items() if p.requires_grad]
    change = torch.cat([(found[name] - named[name]).flatten().double() for name in free])
    assert (change - step).norm() < 1e-4 * step.norm()
    assert all(torch.equal(found[name], p) for name, p in named.items() if name not in free)


def test_ssse_raises_the_forget_loss_more_than_the_retain_loss(model, loaders):
    images, labels = (torch.cat(pair) for pair in zip(*map(examples, (loaders.retain, loaders.forget)), strict=True))
    whole = ExampleDataset(images.to(torch.uint8), labels)
    trained = copy.deepcopy(model)
    get_method("finetune", ["epochs=40", "lr=0.02"])(trained, make_loaders(whole, whole, whole, batch_size=8), seed=0)
    net = copy.deepcopy(trained)
    get_method("ssse", ["eps=0.02", "damping=0.01", "size=2"])(net, loaders, seed=SEED)
    rises = [loss_of(net, loader) - loss_of(trained, loader) for loader in (loaders.forget, loaders.retain)]
    assert rises[0] > 0.1
    assert rises[0] > 3 * abs(rises[1])


@pytest.mark.parametrize("method", [ssse, influence])
def test_a_plan_to_fill_reads_the_forget_set_once(method, model, loaders, monkeypatch):
    seen, whole = [], method.gradient_sum

    def counted(net, batches):
        batches = list(batches)
        seen.append(sum(len(labels) for _, labels in batches))
        return whole(net, batches)

    monkeypatch.setattr(method, "gradient_sum", counted)
    unlearned(method.__name__.rpartition(".")[2], model, loaders, plan=Plan(500, fill=True))
    assert seen[0] == 16


def loss_of(net, loader):
    images, labels = examples(loader)
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(net.eval()(images), labels).item()


@pytest.mark.parametrize("name", METHODS)
def test_a_last_batch_of_one_image_counts_like_the_others(name, model, noise_of_one):
    parts = {64: dataset(65, 1), 5: dataset(11, 2)}  # batch size -> images, of which the last batch has one
    several, whole = (
        make_loaders(parts[64], parts[5], dataset(8, 3), batch_size=100, loader=TensorLoader)._replace(**changed)
        for changed in (
            {"retain": TensorLoader(parts[64], batch_size=64), "forget": TensorLoader(parts[5], batch_size=5)},
            {},
        )
    )
    settings = {"ssse": ["size=1", "damping=0.1"], "fisher_forgetting": ["exact=true", "alpha=0.001"]}.get(name, [])
    found, expected = (unlearned(name, model, loaders, *settings) for loaders in (several, whole))
    change = torch.cat([(expected[key] - p).flatten() for key, p in model.named_parameters()]).norm()
    distance = torch.cat([(expected[key] - found[key]).flatten() for key in found]).norm()
    assert distance < 1e-3 * change


@pytest.mark.parametrize("name", METHODS)
def test_seeds_differ_by_more_than_rounding(name, model, loaders):
    settings = {"ssd": ["fisher_epochs=0.4"], "ssse": ["n_gradients=3"], "fisher_masking": ["fisher_epochs=0.4"]}
    first, second = (unlearned(name, model, loaders, *settings.get(name, []), seed=seed) for seed in (1, 2))
    change = torch.cat([(first[key] - p).flatten() for key, p in model.named_parameters()]).norm()
    distance = torch.cat([(first[key] - second[key]).flatten() for key in first]).norm()
    assert distance > 0.05 * change > 0


@pytest.mark.parametrize("name", METHODS)
def test_a_short_plan_makes_it_short(name, model, loaders):
    def images_seen(plan):
        seen = []
        net = copy.deepcopy(model)
        net.fc.register_forward_hook(lambda module, args, output: seen.append(len(output)))
        get_method(name, ["fisher_epochs=1"] if name != "ssse" else [])(net, loaders, seed=SEED, plan=plan)
        return sum(seen)

    whole = Plan()
    all_images = images_seen(whole)
    assert images_seen(Plan(3)) < 0.7 * all_images
    assert all_images <= 8 * (whole.wanted + 8)


def test_mistakes_are_told(model, loaders):
    with pytest.raises(InputError, match=r"share is 1\.5: expected a share of the weights"):
        unlearned("fisher_masking", model, loaders, "share=1.5")
    with pytest.raises(InputError, match="forget_class is 10: the net has the classes 0 to 9"):
        unlearned("fisher_forgetting", model, loaders, "forget_class=10")
    headless = nn.Sequential(
        nn.Flatten(), nn.Linear(768, 5), nn.Unflatten(1, (5, 1)), nn.ConstantPad2d((0, 1, 0, 0), 0)
    )
    with pytest.raises(InputError, match="no layer of the net has a row for each class"):
        unlearned("fisher_forgetting", headless.append(nn.Flatten()), loaders, "forget_class=1")
    with pytest.raises(InputError, match=r"forget_class is 3\.0: the net has the classes 0 to 9, whole numbers"):
        get_method("fisher_forgetting").function(copy.deepcopy(model), *loaders, seed=SEED, forget_class=3.0)
    with pytest.raises(InputError, match=r"forget_class is 1\.0: .* whole numbers"):
        unlearned("fisher_forgetting", model, loaders, "forget_class=1.0")
    for name, setting, said in [
        ("ssse", "size=0", "size is 0: expected 1 or more"),
        ("influence", "size=0", "size is 0: expected 1 or more"),
        ("seif", "epochs=0", "epochs is 0: expected 1 or more"),
        ("random_mask", "lr=0", r"lr is 0\.0: expected a positive learning rate"),
        ("fanchuan", "contrast_lr=0", r"contrast_lr is 0\.0: expected a positive learning rate"),
    ]:
        with pytest.raises(InputError, match=said):
            unlearned(name, model, loaders, setting)
    with pytest.raises(InputError, match="damping is 0"):
        unlearned("ssse", model, loaders, "damping=0")
