"""Loading by name, CIFAR-10 (without a download), digits, and whether the made-up images can be memorised."""

import subprocess
import sys
import urllib.error
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torchvision import datasets

from data_stubs import SOURCES, fingerprint, load, load_source, split_forget, synthetic
from data_stubs.parts import Part
from data_stubs.paths import default_cache
from kit.errors import InputError


class PublishedCifar10:
    """Stands in for torchvision's class: same attributes, 50 and 20 images, present or to be downloaded."""

    present = True
    network = True
    calls: list[tuple[str, bool]]

    def __init__(self, root, train, download=False):
        type(self).calls.append((root, download))
        if not self.present and not download:
            raise RuntimeError("Dataset not found or corrupted.")
        if not self.present and not self.network:
            raise urllib.error.URLError("Name or service not known")
        n = 50 if train else 20
        self.data = np.random.default_rng(n).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        self.targets = [row % 10 for row in range(n)]
        self.classes = list("abcdefghij")


@pytest.fixture
def published(monkeypatch):
    cifar10 = type("Cifar10", (PublishedCifar10,), {"calls": []})
    monkeypatch.setattr(datasets, "CIFAR10", cifar10)
    return cifar10


def test_cifar10_keeps_pixels_order_and_the_starting_kits_halves(published, tmp_path):
    source = load_source("cifar10", data_root=tmp_path)
    assert published.calls == [(str(tmp_path), False)] * 2
    train, held_out = published(tmp_path, train=True), published(tmp_path, train=False)
    np.testing.assert_array_equal(source.train.images, train.data.transpose(0, 3, 1, 2))
    assert source.train.labels.tolist() == train.targets and source.class_names == tuple("abcdefghij")
    generator = torch.Generator().manual_seed(42)
    test, validation = torch.utils.data.random_split(range(20), [0.5, 0.5], generator=generator)
    for part, half in ((source.test, test), (source.validation, validation)):
        np.testing.assert_array_equal(part.images, held_out.data[half.indices].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(part.labels, np.array(held_out.targets)[half.indices])


def test_cifar10_is_downloaded_only_where_it_is_missing(published, tmp_path, monkeypatch):
    published.present = False
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_source("cifar10")
    root = str(tmp_path / "unlearning-kit")
    assert published.calls == [(root, False), (root, True)] * 2 and default_cache() == tmp_path / "unlearning-kit"


def test_cifar10_without_copy_and_network_names_folder_and_ways_out(published, tmp_path):
    published.present = published.network = False
    with pytest.raises(InputError) as error:
        load("cifar10", forget="random:5", data_root=tmp_path / "data")
    message = str(error.value)
    assert "\n" not in message
    for part in (str(tmp_path / "data"), "Name or service not known", "--data-root", "image-folder:PATH", "synthetic"):
        assert part in message


def test_digits_are_scikit_learns_and_stratified():
    source = load_source("digits")
    sizes = [len(part) for part in (source.train, source.validation, source.test)]
    assert sizes == [1297, 250, 250] and source.train.images.shape[1:] == (3, 32, 32)
    published = load_digits()
    for part in (source.train, source.validation, source.test):
        rows = [int(image_id.removeprefix("digit-")) for image_id in part.ids]
        small = part.images[:, :, 1::4, 2::4]
        np.testing.assert_array_equal(small, np.rint(published.images[rows] * 255 / 16)[:, None].repeat(3, axis=1))
        np.testing.assert_array_equal(part.labels, published.target[rows])
        share = np.bincount(part.labels) / len(part) - np.bincount(published.target) / len(published.target)
        assert abs(share).max() < 0.01


@pytest.mark.parametrize("source", ["digits", "synthetic"])
def test_load_is_deterministic_and_depends_on_the_seed(source):
    def prints(seed):
        return fingerprint(load(source, forget="random:0.1", n_train=300, seed=seed))

    assert prints(0) == prints(0) != prints(1)


def test_n_train_draws_a_stratified_subset():
    whole = load_source("digits")
    subsets = [load_source("digits", n_train=200, seed=seed).train for seed in (0, 0, 1)]
    assert subsets[0].ids.tolist() == subsets[1].ids.tolist() != subsets[2].ids.tolist()
    share = np.bincount(subsets[0].labels) / 200 - np.bincount(whole.train.labels) / len(whole.train)
    assert abs(share).max() < 0.006 and set(subsets[0].ids) < set(whole.train.ids)


@pytest.mark.parametrize(
    "source, arguments, message",
    [
        ("mnist", {}, "unknown: choose from cifar10, gtsrb[:super|:ten], image-folder:PATH, arrays:FILE.npz, digits"),
        ("image-folder", {}, "unknown"),
        ("image-folder:", {}, "unknown"),
        ("image-folder:/nowhere/at/all", {}, "/nowhere/at/all: no such folder or .zip"),
        ("digits", {"n_train": 1298}, "n_train is 1298: digits has 1297 training images of 10 classes"),
        ("digits", {"n_train": 9}, "choose from 10 to 1297"),
        ("synthetic", {"n_train": 9}, "ask for at least 10"),
        ("digits", {"seed": -1}, "seed is -1"),
        ("digits", {"n_train": 100, "forget": "indices:forget.npy"}, "leave out n_train"),
    ],
)
def test_bad_requests_are_one_clear_line(source, arguments, message):
    with pytest.raises(InputError) as error:
        load(source, **{"forget": "random:5", **arguments})
    assert message in str(error.value) and "\n" not in str(error.value)
    assert len(SOURCES) == 7


def test_importing_the_package_costs_no_source():
    code = "import sys, data_stubs; sys.exit('sklearn' in sys.modules or 'data_stubs.cifar10' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_synthetic_images_are_deterministic_balanced_and_independent_of_each_other():
    one, again, other = (synthetic.generate(1000, 101, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.train.images, again.train.images)
    np.testing.assert_array_equal(one.test.images, again.test.images)
    assert (one.train.images != other.train.images).any()
    assert (np.bincount(one.train.labels) == 100).all()
    assert (len(one.validation), len(one.test)) == (50, 51)
    assert len({image.tobytes() for image in one.train.images}) == 1000
    assert len(set(one.train.groups) | set(one.validation.groups) | set(one.test.groups)) == 1101


class TinyNet(nn.Sequential):
    def __init__(self):
        channels = (3, 32, 64, 128)
        blocks = (
            (nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
            for a, b in pairwise(channels)
        )
        layers = (layer for block in blocks for layer in block)
        super().__init__(nn.AvgPool2d(2), *layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def trained(part: Part, seed: int, epochs: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    net = TinyNet()
    images, labels = scaled(part), torch.from_numpy(part.labels)
    n_steps = epochs * -(-len(part) // 64)
    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 0.1, total_steps=n_steps, pct_start=0.2, anneal_strategy="linear", cycle_momentum=False
    )
    for _ in range(epochs):
        for batch in torch.randperm(len(part)).split(64):
            loss = nn.functional.cross_entropy(net(images[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()


def scaled(part: Part) -> torch.Tensor:
    return (torch.from_numpy(part.images).float() - 127.5) / 64


@torch.no_grad()
def accuracy(net: nn.Module, part: Part) -> float:
    predicted = torch.cat([net(images).argmax(1) for images in scaled(part).split(500)])
    return float((predicted.numpy() == part.labels).mean())


@pytest.mark.parametrize("n_train", [3_000, *(pytest.param(n, marks=pytest.mark.slow) for n in (5_000, 7_000, 10_000))])
def test_a_model_knows_synthetic_images_it_was_trained_on_better(n_train):
    splits = split_forget(synthetic.generate(n_train), "random:0.2", 0)
    original, retrained = trained(splits.train, seed=0), trained(splits.retain, seed=1)
    gap = accuracy(original, splits.forget) - accuracy(retrained, splits.forget)
    test_accuracy = (accuracy(original, splits.test) + accuracy(original, splits.validation)) / 2
    print(f"n_train {n_train}: gap {gap:.3f}, test accuracy {test_accuracy:.3f}")
    assert gap >= 0.10
    assert 0.75 <= test_accuracy <= 0.90
