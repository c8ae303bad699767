"""What several test files need: small data, a small model, a small input tree."""

import signal
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import data_stubs
from data_stubs.kaggle_tree import write_tree
from kit.competition import ExampleDataset, Loaders, TensorLoader, make_loaders, resnet18
from local_eval.models import tinyconv


def dataset(n_examples: int, seed: int, size: int = 16) -> ExampleDataset:
    """Random images and labels of ten classes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n_examples, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (n_examples,), generator=generator)
    return ExampleDataset(images, labels, image_id=[f"{seed}-{i}" for i in range(n_examples)])


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Small nets run faster with one thread, and as in the engine's workers."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def interruptible():
    """A shell ignores Ctrl-C for what it starts in the background, tests included; some of them send it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def rough_predictions():
    """What 512 models would get is simulated, at a length that a test does not need."""
    assess = import_module("local_eval.assess")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assess, "predict_quality", partial(assess.predict_quality, n_simulated=20, n_refits=2))
        yield


@pytest.fixture
def loaders() -> Loaders:
    return make_loaders(dataset(50, 1), dataset(20, 2), dataset(20, 3), batch_size=8, loader=TensorLoader)


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return tinyconv().eval()


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """An input tree of 200 digits and a tinyconv, whose builder for `--architecture` lies beside it in net.py."""
    splits = data_stubs.load("digits", forget="random:20", n_train=200)
    torch.manual_seed(0)
    root = write_tree(splits, tinyconv().state_dict(), tmp_path_factory.mktemp("input") / "tree")
    (root.parent / "net.py").write_text("from local_eval.models import tinyconv\ndef net(): return tinyconv()\n")
    return root


@pytest.fixture
def participant(tmp_path: Path):
    """Write a participant's file and give its path: participant("def unlearning(...): ...")."""

    def write(text: str, name: str = "mine.py") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A stand-in of few images; its ResNet-18 is untrained but for the BatchNorm statistics."""
    from local_eval.dry_run.stand_in import described  # here: it takes seconds

    splits = data_stubs.load("synthetic", forget="random:16", n_train=80)
    splits = replace(splits, validation=splits.validation.take(np.arange(24)), test=splits.test.take(np.arange(24)))
    torch.manual_seed(0)
    net = resnet18()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    with torch.no_grad():
        net.train()(torch.tensor(splits.retain.images).float())
    tree = write_tree(splits, net.state_dict(), tmp_path_factory.mktemp("dry-run") / "tree")
    return described(tree, None)
