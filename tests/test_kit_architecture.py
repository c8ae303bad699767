"""The kit's commands with a net of a user's file: it is built for as many classes as the original model has."""

import json
from dataclasses import replace

import pytest
import torch

import data_stubs
from data_stubs.kaggle_tree import write_tree
from kit.__main__ import main
from kit.tools.own import build_own_net

NETS = """
from torch import nn

class HeadLast(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, n_classes)

    def forward(self, images):
        return self.fc(self.conv(images).relu().mean((2, 3)))

class HeadFirst(HeadLast):
    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.conv = self._modules.pop("conv")
"""


@pytest.fixture(scope="module", params=["HeadLast", "HeadFirst"])
def case(request, tmp_path_factory):
    """The options of a net of four classes and of its input tree."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "net.py").write_text(NETS)
    spec = f"{folder}/net.py:{request.param}"
    splits = data_stubs.load("digits", forget="random:20", n_train=200)
    parts = {name: of_four(getattr(splits, name)) for name in ("retain", "forget", "validation", "test")}
    torch.manual_seed(0)
    state = build_own_net(spec, 4).state_dict()
    tree = write_tree(replace(splits, **parts), state, folder / "tree")
    return ["--architecture", spec, "--device", "cpu", "--slots", "1", "--quiet", "--json"], tree


def of_four(part):
    return part.take((part.labels < 4).nonzero()[0])


def test_emit_profile_and_verify_take_the_originals_number_of_classes(case, tmp_path, capsys):
    options, tree = case
    given = ["--input", str(tree), "--n-models", "2", *options]
    assert main(["emit", *given, "--out", str(tmp_path / "out")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"]
    assert main(["profile", *given, "--method", "finetune", "--measure", "2"]) == 0
    capsys.readouterr()
    words = ["--n-models", "2", "--original", str(tree / "original_model.pth"), *options[:2], "--quiet", "--json"]
    assert main(["verify", facts["archive"], *words]) == 0


def test_a_net_that_fits_for_no_number_of_classes_is_told_by_its_shapes(case, tmp_path, capsys):
    options, tree = case
    spec = options[1].replace("net.py", "wider.py")
    (tree.parent / "wider.py").write_text(NETS.replace("Conv2d(3, 8", "Conv2d(3, 9").replace("Linear(8", "Linear(9"))
    words = ["--input", str(tree), *options, "--architecture", spec, "--out", str(tmp_path / "out")]
    assert main(["emit", *words]) == 2
    assert "has shape (" in capsys.readouterr().err
