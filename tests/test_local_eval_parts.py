"""Models, optimiser, recipes and pools of the local evaluation."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kit.competition import TensorLoader
from kit.errors import InputError
from kit.fisher.layers import known_layers
from local_eval.inference import native_bfloat16, predict
from local_eval.models import ARCHITECTURES, OnePixelConv2d, build
from local_eval.muon import Muon, orthogonalize
from local_eval.pool import ModelPool
from local_eval.recipes import RECIPES, get_recipe
from local_eval.setting import Setting, open_workspace
from tests.conftest import dataset


@pytest.mark.parametrize(
    ("name", "n_parameters"), [("resnet18", 11_181_642), ("resnet20", 269_722), ("smallconv", 97_354)]
)
def test_architectures_have_the_published_size(name, n_parameters):
    assert sum(p.numel() for p in build(name, 10).parameters()) == n_parameters


def test_the_narrow_resnet18_is_torchvisions_at_a_quarter_of_the_width():
    """Same entries in the same order, every channel count a quarter, and as large weights at the start."""
    narrow, wide = (build(name, 10, seed=3).state_dict() for name in ("resnet18_narrow", "resnet18"))
    assert list(narrow) == list(wide)
    for name, tensor in wide.items():
        ends = (3, 10) if name in ("conv1.weight", "fc.weight", "fc.bias") else ()  # image channels and classes stay
        quarter = tuple(n if n in ends or i > 1 else n // 4 for i, n in enumerate(tensor.shape))
        assert narrow[name].shape == quarter, name
    # He's initialisation: variance 2 / (fan out), so a quarter of the channels has twice the standard deviation.
    convolutions = [name for name, tensor in wide.items() if tensor.ndim == 4]
    ratios = [float(narrow[name].std() / wide[name].std()) for name in convolutions]
    assert np.allclose(ratios, 2, rtol=0.1), ratios


@pytest.mark.parametrize(
    ("stride", "height", "width"),
    [(1, 1, 1), (2, 1, 1), (2, 2, 2), (2, 2, 1), (2, 1, 2), (1, 2, 2), (2, 3, 2), (2, 4, 4)],
)
def test_a_convolution_to_one_pixel_is_a_convolution(stride, height, width):
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(5, 7, 3, stride, padding=1).double()
    ours = OnePixelConv2d(5, 7, 3, stride, padding=1).double()
    ours.load_state_dict(plain.state_dict())
    images = torch.randn(3, 5, height, width).double().to(memory_format=torch.channels_last)
    gradients = []
    for layer in (plain, ours):
        given = images.clone().requires_grad_()
        output = layer(given)
        (output**3).sum().backward()
        gradients.append([output.detach(), given.grad, layer.weight.grad, layer.bias.grad])
    for expected, found in zip(*gradients, strict=True):
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=1e-12)


def test_the_narrow_resnet18_computes_what_torchvisions_layers_do():
    net = build("resnet18_narrow", 10, seed=3).eval()
    images = torch.randint(0, 256, (4, 3, 32, 32)).float()
    ours = [module for module in net.modules() if isinstance(module, OnePixelConv2d)]
    assert len(ours) == 4
    assert {f"layer4.{block}.conv{i}." for block in (0, 1) for i in (1, 2)} <= known_layers(net, images).keys()
    copied = pickle.loads(pickle.dumps([OnePixelConv2d(2, 2, 3), *ours]))  # as processes pass them on
    assert torch.equal(copied[1].weight, ours[0].weight)
    found = net(images)
    for module in ours:
        module.__class__ = torch.nn.Conv2d
    assert torch.allclose(net(images), found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_take_bytes_and_give_logits(name):
    net = build(name, 7, seed=1).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32)).float()
    assert net(images).shape == (2, 7)
    assert torch.equal(build(name, 7, seed=1).eval()(images), net(images))


def test_unknown_names_are_told_with_the_known_ones():
    with pytest.raises(InputError, match="known are resnet18"):
        build("resnet19", 10)
    with pytest.raises(InputError, match="known are competition"):
        get_recipe("slow")


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_orthogonalize_brings_singular_values_near_one_and_keeps_the_vectors(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    result = orthogonalize(matrix, n_iterations=8)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.diagonal(u.T @ result @ v.T)
    assert ((values > 0.6) & (values < 1.3)).all()
    assert torch.allclose(u @ torch.diag(values) @ v, result, atol=1e-3)


def test_muon_holds_the_norm_of_convolutions_and_steps_like_nesterov_elsewhere():
    net, twin = build("tinyconv", 10, seed=0), build("tinyconv", 10, seed=0)
    ours = Muon(net, lr=0.01, sgd_lr=0.1)
    others = [p for p in twin.parameters() if p.ndim < 4]
    theirs = torch.optim.SGD(others, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    torch.manual_seed(1)
    for _ in range(3):
        for parameter, copy in zip(net.parameters(), twin.parameters(), strict=True):
            parameter.grad = torch.randn_like(parameter)
            copy.grad = parameter.grad.clone()
        ours.step()
        theirs.step()
    for parameter, copy in zip(net.parameters(), twin.parameters(), strict=True):
        if parameter.ndim < 4:
            assert torch.allclose(parameter, copy, atol=1e-6)
        else:
            assert parameter.norm().item() == pytest.approx(len(parameter) ** 0.5, rel=0.02)


@pytest.mark.parametrize(("name", "epochs"), [("fast", 10), ("sgd", 30), ("competition", 60)])
def test_recipes_learn(name, epochs):
    """Images whose brightness gives the class; the competition's small learning rate takes longer."""
    data = dataset(200, 0)
    data.images[:] = (data.labels * 25)[:, None, None, None].to(torch.uint8) + data.images // 16
    torch.manual_seed(0)
    net = build("tinyconv", 10)
    RECIPES[name].fit(net, data, epochs, torch.bincount(data.labels, minlength=10).float())
    accuracy = (predict(net, [(data.images, data.labels)]).argmax(1) == data.labels).float().mean()
    assert accuracy > 0.3, "chance is 0.1"


@pytest.mark.parametrize(("flags", "dtype"), [("fma avx512_bf16", torch.bfloat16), ("fma avx512f", None)])
def test_the_fast_recipe_takes_bfloat16_where_the_cpu_has_it(flags, dtype, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path: flags)
    assert native_bfloat16(torch.device("cpu")) == dtype
    net, data, seen = build("tinyconv", 10, seed=0), dataset(64, 0), []
    net.fc.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    RECIPES["fast"].fit(net, data, 1.0, torch.ones(10))
    assert set(seen) == {dtype or torch.float32}
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in net.parameters())


def logits(value=0.0):
    return {name: np.full((4, 10), value, np.float32) for name in ("forget", "retain", "test")}


def test_a_pool_grows_and_gives_back_what_was_put_in(tmp_path):
    pool = ModelPool(tmp_path / "p", {"setting": "a"})
    for index in (2, 0):
        pool.add(index, logits(index), seconds=index + 0.5)
    assert pool.missing(4) == [1, 3]
    pool.add(1, logits(1), seconds=1.5)
    arrays = ModelPool.open(tmp_path / "p").read(3)
    assert arrays["test"].shape == (3, 4, 10)
    assert arrays["forget"][:, 0, 0].tolist() == [0, 1, 2]
    assert arrays["seconds"].tolist() == [0.5, 1.5, 2.5]


def test_faults_of_a_pool_are_told_with_the_file(tmp_path):
    pool = ModelPool(tmp_path / "p", {"setting": "a"})
    pool.add(0, logits(), 1.0)
    with pytest.raises(InputError, match="model 1 is not in the pool"):
        pool.read(2)
    pool.add(1, logits(np.nan), 1.0)
    with pytest.raises(InputError, match=r"model_00001\.npz: has NaN"):
        pool.read(2)
    path = tmp_path / "p/model_00001.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"model_00001\.npz: is broken"):
        pool.read(2)
    with pytest.raises(InputError, match="this pool has setting 'a', asked for was 'b': call the folder around it as"):
        ModelPool(tmp_path / "p", {"setting": "b"})
    (tmp_path / "p/pool.json").write_text("null")
    with pytest.raises(InputError, match=r"pool\.json: cannot be read"):
        ModelPool.open(tmp_path / "p")
    shutil.rmtree(tmp_path / "p")
    with pytest.raises(InputError, match=r"model_00002\.npz: cannot be written"):
        pool.add(2, logits(), 1.0)
    with pytest.raises(InputError, match=r"is .* a pool"):
        ModelPool.open(tmp_path)


def test_an_epoch_of_several_passes_holds_every_example_as_often(tmp_path):
    """In whatever loader a method builds on the data set; training of the original does not change."""
    setting = Setting("digits", "random:30", n_train=300, architecture="tinyconv", epochs=1, n_retain_sample=100)
    once, thrice = (open_workspace(replace(setting, passes=passes), tmp_path) for passes in (1, 3))
    assert once.name != thrice.name
    for plain, several in zip(once.loaders(TensorLoader), thrice.loaders(TensorLoader), strict=True):
        assert len(several.dataset) == 3 * len(plain.dataset)
        ids = [name for batch in several for name in batch["image_id"]]
        assert sorted(ids) == sorted([row["image_id"] for row in plain.dataset.examples] * 3)
    assert len(thrice.splits.train) == 300
    with pytest.raises(InputError, match="passes is 0"):
        replace(setting, passes=0)
