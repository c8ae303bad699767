"""What several test files need: small data, a small model, a small input tree."""

import os

for library in ("OMP", "OPENBLAS"):  # what is computed here is small, and other tests run on the other cores
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import math
import shutil
import signal
from contextlib import contextmanager
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
from kit.jobs import warm_up
from kit.methods import get_method
from local_eval.models import tinyconv
from tests.browser import browser  # noqa: F401 - one for all files of a process


def pytest_collection_modifyitems(items):
    """Files that take minutes come first: otherwise one process would be at them after all others have ended."""
    items.sort(key=lambda item: item.path.stem not in ("test_second_device", "test_notebook_cells"))


def dataset(n_examples: int, seed: int, size: int = 16) -> ExampleDataset:
    """Random images and labels of ten classes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n_examples, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (n_examples,), generator=generator)
    return ExampleDataset(images, labels, image_id=[f"{seed}-{i}" for i in range(n_examples)])


@pytest.fixture(autouse=True, scope="session")
def prepared_server():
    """Worker processes are forked off a server that has imported more than a run would give it: in a whole run of the
    tests they are started hundreds of times."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        warm_up("torchvision", "sklearn.datasets", "local_eval.retrained", "local_eval.unlearned", "tests.conftest")


@pytest.fixture(autouse=True, scope="session")
def interruptible():
    """A shell ignores Ctrl-C for what it starts in the background, tests included; some of them send it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def roughly_predicted():
    assess = import_module("local_eval.assess")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assess, "predict_quality", partial(assess.predict_quality, n_simulated=20, n_refits=2))
        patch.setattr(assess, "_logistic_mia", partial(assess._logistic_mia, n_models=1))
        yield


@pytest.fixture(scope="module")
def rough_predictions():
    """What 512 models would get is simulated, and one model attacked: more than that a test of pages does not need."""
    with roughly_predicted():
        yield


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures stay empty where a test asks for words alone: drawing them takes most of a page's time."""
    monkeypatch.setattr(import_module("local_eval.report.html"), "svg", lambda figure, label: '<svg role="img"></svg>')


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


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory) -> tuple[Path, list[Path]]:
    """A setting's folder with 8 retrained models and 8 of each of three methods, and the pools' folders; read only."""
    from local_eval.retrained import fill_retrained
    from local_eval.setting import Setting, open_workspace
    from local_eval.unlearned import fill_unlearned

    small = {"n_train": 300, "architecture": "tinyconv", "epochs": 1, "n_retain_sample": 100}
    workspace = open_workspace(Setting("digits", "random:30", **small), tmp_path_factory.mktemp("runs"))
    options = {"devices": ["cpu"], "progress": False}
    fill_retrained(workspace, 8, **options)
    methods = map(get_method, ("finetune", "random_perturbation", "negative_gradient"))
    return workspace.folder, [fill_unlearned(workspace, method, 8, **options).folder for method in methods]


@pytest.fixture
def copied(evaluated, tmp_path) -> tuple[Path, list[Path]]:
    """A copy of it that a test may change."""
    folder, pools = evaluated
    shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("*.html"))
    return tmp_path / folder.name, [tmp_path / folder.name / pool.name for pool in pools]


@pytest.fixture(scope="session")
def pages(evaluated) -> dict[str, Path]:
    """What `report` writes for the three methods: name -> file; the prediction is as rough as `rough_predictions`."""
    from local_eval.__main__ import main

    folder, pools = evaluated
    with roughly_predicted():
        assert main(["report", *map(str, pools), "--quiet"]) == 0
    found = {pool.name.partition("-")[0]: pool / "report.html" for pool in pools}
    return {**found, "comparison": folder / "comparison.html"}


class Clock:
    """Time that passes where a test says so and nowhere else. An alarm that is set on it rings when it comes to it."""

    def __init__(self):
        self.now, self.rings_at, self.again_s = 0.0, math.inf, math.inf

    def __call__(self) -> float:
        return self.now

    def set_alarm(self, which: int, seconds: float, interval: float = 0.0) -> None:
        self.rings_at, self.again_s = self.now + (seconds or math.inf), interval or math.inf

    def passes(self, seconds: float) -> None:
        until = self.now + seconds
        while self.rings_at <= until:
            self.now, self.rings_at = self.rings_at, self.rings_at + self.again_s
            signal.raise_signal(signal.SIGALRM)
        self.now = until


@pytest.fixture
def own_clock(monkeypatch) -> Clock:
    """In this process what is timed is timed by it, and alarms are set on it."""
    found = Clock()
    monkeypatch.setattr("time.perf_counter", found)
    monkeypatch.setattr(signal, "setitimer", found.set_alarm)
    return found


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
