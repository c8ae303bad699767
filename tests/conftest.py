"""What several test files need: small data, a small model, a small input tree."""

import signal
from pathlib import Path

import pytest
import torch

import data_stubs
from data_stubs.kaggle_tree import write_tree
from kit.competition import ExampleDataset, Loaders, TensorLoader, make_loaders
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
