"""Architectures, recipes, sources and forget policies in a user's file: file.py:function wherever a name can stand."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

import data_stubs
from kit.__main__ import main as kit
from kit.errors import InputError
from kit.tools.own import build_net, build_own_net, is_file_spec, read_spec
from local_eval import recipes
from local_eval.__main__ import main
from local_eval.commands.options import setting_of
from local_eval.commands.parser import build_parser
from local_eval.models import build, tinyconv
from local_eval.pool import ModelPool
from local_eval.published import export_pool, import_pool
from local_eval.retrained import fill_retrained, retrained_pool
from local_eval.setting import Setting, as_dataset, open_workspace, reopen

NETS = """
import torch
from torch import nn

class Plain(nn.Module):  # no BatchNorm
    def __init__(self, n_classes=10):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, n_classes)
    def forward(self, images):
        return self.fc(self.conv(images / 255).relu().mean((2, 3)))

class ViT(nn.Module):  # an embedding for each place: it takes images of one size only
    def __init__(self, n_classes):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.places = nn.Parameter(torch.zeros(1, 16, 16))
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, n_classes)
    def forward(self, images):
        tokens = self.patches(images / 255).flatten(2).transpose(1, 2) + self.places
        return self.head(self.block(tokens).mean(1))

def vit(n_classes):
    return ViT(n_classes)
def nothing():
    return Plain()
def named(*, num_classes=1000):
    return Plain(num_classes)
def thousand():
    return Plain(1000)
def broken(n_classes):
    return {}[n_classes]
def words(n_classes):
    return "a net"
def several(n_classes, width):
    return Plain(n_classes)
"""
RECIPES = """
import torch
from torch.nn.functional import cross_entropy

def fit(net, dataset, epochs=2):
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    for _ in range(int(epochs)):
        for batch in torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True):
            loss = cross_entropy(net(batch["image"]), batch["age_group"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

def no_default(net, dataset, epochs):
    return net
def diverges(net, dataset, epochs=1, class_counts=None):
    with torch.no_grad():
        next(net.parameters()).fill_(float("nan"))
def raises(net, dataset, epochs=1):
    raise ValueError("no luck")
def strange(net, dataset, rate):
    return net
"""
SOURCES = """
import numpy as np
from torch.utils.data import Dataset

def arrays(share="1"):
    rng = np.random.default_rng(0)
    n = int(200 * float(share))
    return rng.integers(0, 256, (n, 24, 24, 3), dtype=np.uint8), np.arange(n) % 4

class Items(Dataset):
    classes = ["ape", "bee"]
    def __len__(self):
        return 40
    def __getitem__(self, row):
        return np.full((3, 8, 8), row, np.uint8), row % 2

def words():
    return "no data"

def first(source, argument, rng):
    return np.arange(int(argument))
def mask(source, rng):
    return source.train.labels == 1
def twice(source, rng):
    return [1, 1]
"""


@pytest.fixture
def files(tmp_path):
    for name, text in (("net.py", NETS), ("recipe.py", RECIPES), ("data.py", SOURCES)):
        (tmp_path / name).write_text(text)
    return tmp_path


def small(files, **fields):
    data = {"source": f"{files}/data.py:arrays", "forget": f"{files}/data.py:first:12"}
    defaults = {"architecture": f"{files}/net.py:Plain", "recipe": f"{files}/recipe.py:fit", **data}
    return Setting(**defaults | fields)


def test_a_spec_is_read_in_parts():
    assert is_file_spec("a/net.py:f")
    assert not is_file_spec("resnet18")
    spec = read_spec("a/net.py:f:x:y", "--what")
    assert spec.path.is_absolute()
    assert (spec.path.name, spec.function, spec.argument) == ("net.py", "f", "x:y")
    assert read_spec("a/net.py:f", "--what").argument is None
    with pytest.raises(InputError, match=r"--what a/net.py: names no function of the file: write it as a/net.py:NAME"):
        read_spec("a/net.py", "--what")


@pytest.mark.parametrize("function", ["Plain", "vit", "named"])
def test_a_net_gets_the_number_of_classes(files, function):
    net = build(f"{files}/net.py:{function}", 7, seed=3)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    again = build(f"{files}/net.py:{function}", 7, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    assert build_net(f"{files}/net.py:nothing")(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("absent", "net.py defines no function absent"),
        ("broken", r"net.py:broken, line \d+: KeyError: 7"),
        ("words", "gave str: expected a torch.nn.Module"),
        ("several", "needs n_classes, width: expected n_classes or nothing"),
    ],
)
def test_a_net_that_cannot_be_built(files, function, message):
    with pytest.raises(InputError, match=message):
        build_own_net(f"{files}/net.py:{function}", 7)


def test_files_that_cannot_be_run(files):
    (files / "bad.py").write_text("def net(:\n")
    with pytest.raises(InputError, match=r"bad.py, line 1: SyntaxError"):
        build_own_net(f"{files}/bad.py:net")
    with pytest.raises(InputError, match=r"gone.py: no such file"):
        build_own_net(f"{files}/gone.py:net")


def test_the_text_of_a_file_is_part_of_the_setting(files, tmp_path):
    setting, splits = small(files), data_stubs.load(f"{files}/data.py:arrays", forget=f"{files}/data.py:first:12")
    before = setting.hash(splits)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("net.py", "recipe.py", "data.py"):
        (elsewhere / name).write_text((files / name).read_text())
    assert small(elsewhere).hash(splits) == before  # wherever the files lie
    assert small(files, architecture=f"{files}/net.py:nothing").hash(splits) != before
    for name in ("net.py", "recipe.py"):
        text = (files / name).read_text()
        (files / name).write_text(text.replace("0.01", "0.02").replace("8, 3, 2", "8, 5, 2"))
        assert small(files).hash(splits) != before
        (files / name).write_text(text)
    assert small(files).hash(splits) == before


def test_models_of_an_own_net_recipe_and_source_are_trained_by_processes(files, tmp_path):
    workspace = open_workspace(small(files), tmp_path / "runs", progress=False)
    assert workspace.setting.epochs == 2  # the function's default
    pool = fill_retrained(workspace, 2, devices=["cpu", "cpu"], progress=False)
    assert pool.read(2)["forget"].shape == (2, 12, 4)
    assert workspace.original()(torch.zeros(1, 3, 24, 24)).shape == (1, 4)
    facts = json.loads((workspace.folder / "setting.json").read_text())
    assert facts["architecture"] == f"{files}/net.py:Plain"
    assert set(facts["sources"]) == {"architecture", "recipe"}


def test_reopening_keeps_logits_and_tells_where_a_file_was_changed(files, tmp_path):
    workspace = open_workspace(small(files), tmp_path / "runs", progress=False)
    fill_retrained(workspace, 2, devices=["cpu"], progress=False)
    text = (files / "net.py").read_text()
    (files / "net.py").write_text(text + "\n# edited\n")
    again = reopen(workspace.folder, checked=True)
    assert len(retrained_pool(again)) == 2
    with pytest.raises(InputError, match=r"net.py: was changed since the models of .* were made: undo that, or begin"):
        again.original()
    with pytest.raises(InputError, match=r"was changed since"):
        fill_retrained(again, 3, devices=["cpu"], progress=False)
    (files / "net.py").unlink()
    with pytest.raises(InputError, match=r"net.py: is gone, and with it the architecture of"):
        reopen(workspace.folder).original()
    (files / "net.py").write_text(text)
    (files / "recipe.py").unlink()
    assert reopen(workspace.folder).original() is not None
    with pytest.raises(InputError, match=r"recipe.py: is gone, and with it the recipe of"):
        reopen(workspace.folder).recipe()


def test_published_models_of_an_own_net_are_read_again(files, tmp_path):
    workspace = open_workspace(small(files), tmp_path / "runs", progress=False)
    fill_retrained(workspace, 2, devices=["cpu"], progress=False)
    export_pool(workspace, tmp_path / "pool.npz")
    again, n_models = import_pool(tmp_path / "pool.npz", tmp_path / "others", progress=False)
    assert (again.name, n_models) == (workspace.name, 2)
    (tmp_path / "elsewhere").mkdir()
    (files / "net.py").rename(tmp_path / "elsewhere/net.py")
    with pytest.raises(InputError, match=r"net.py: no such file"):
        import_pool(tmp_path / "pool.npz", tmp_path / "third", progress=False)
    own = f"{tmp_path}/elsewhere/net.py:Plain"
    assert (
        import_pool(tmp_path / "pool.npz", tmp_path / "third", architecture=own, progress=False)[0].name == again.name
    )
    (files / "net.py").write_text(NETS + "# edited\n")
    with pytest.raises(InputError, match=r"was made with another text of .*net.py"):
        import_pool(tmp_path / "pool.npz", tmp_path / "third", progress=False)


@pytest.mark.parametrize("net", ["Plain", "vit"])
def test_the_usual_recipe_trains_nets_without_batchnorm_and_of_one_size(files, tmp_path, net):
    """The usual recipe begins at half the resolution, which a transformer's embedding of places does not take."""
    options = ["--source", "digits", "--n-train", "100", "--forget", "random:10", "--architecture"]
    options += [f"{files}/net.py:{net}", "--epochs", "1", "--work-dir", str(tmp_path / "runs"), "--slots", "1"]
    assert main(["run", *options, "--n-models", "2", "--method", "ssd", "--quiet"]) == 0
    (pool,) = (tmp_path / "runs").glob("*/ssd-*")
    assert ModelPool.open(pool).read(2)["test"].shape[::2] == (2, 10)
    assert (pool / "report.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--architecture", "net.py:thousand"], "gives (1000,) for an image of 3 x 24 x 24: expected 4 numbers"),
        (["--architecture", "net.py:vit"], "takes no images of 3 x 24 x 24"),
        (["--architecture", "net.py"], "names no function of the file: write it as"),
        (["--recipe", "recipe.py:no_default"], "has no default for epochs: give --epochs N"),
        (["--recipe", "recipe.py:diverges"], "the trained net has NaN or infinite weights"),
        (["--recipe", "recipe.py:raises"], "ValueError: no luck"),
        (["--recipe", "recipe.py:strange"], "takes net, dataset, rate: expected (net, dataset, epochs, class_counts)"),
        (["--recipe", "sgdd"], "recipe 'sgdd': unknown: did you mean sgd?"),
        (["--architecture", "resnet81"], "architecture 'resnet81': unknown: did you mean resnet18?"),
        (["--source", "data.py:words"], "gave str: expected a Source, (images, labels) or a torch Dataset"),
        (["--source", "data.py:absent"], "data.py defines no function absent"),
        (["--source", "data.py:arrays:much"], "ValueError: could not convert string to float: 'much'"),
        (["--forget", "data.py:twice"], "expected rows of the 160 training images, each once"),
        (["--forget", "data.py:first"], "int() argument must be a string"),
        (["--forget", "randon:5"], "did you mean random?"),
        (["--source", "digitz"], "did you mean digits?"),
    ],
)
def test_what_a_file_gives_wrong(files, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(files)
    usual = ["--source", "data.py:arrays", "--forget", "data.py:first:12", "--recipe", "recipe.py:fit"]
    usual += ["--architecture", "net.py:Plain", "--work-dir", str(tmp_path / "runs"), "--slots", "1", "--quiet"]
    assert main(["train", *usual, *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_sources_and_policies_of_a_file(files):
    splits = data_stubs.load(f"{files}/data.py:Items", forget=f"{files}/data.py:mask", progress=False)
    assert splits.class_names == ("ape", "bee")
    assert set(splits.forget.labels) == {1}  # a class as a whole
    noisy = data_stubs.load(f"{files}/data.py:arrays:0.5:noise=0.1", forget="random:5", progress=False)
    assert len(noisy.train) == 80
    assert noisy.train.images.shape[1:] == (3, 24, 24)
    assert "10% of the labels flipped" in noisy.name


def test_the_kit_builds_an_own_net_with_classes(files, tree, tmp_path, capsys):
    (files / "tiny.py").write_text(
        "from local_eval.models import tinyconv\ndef net(n_classes): return tinyconv(n_classes)\n"
    )
    options = ["--input", str(tree), "--out", str(tmp_path / "out"), "--n-models", "2", "--device", "cpu", "--quiet"]
    assert kit(["emit", *options, "--architecture", os.path.relpath(files / "tiny.py") + ":net"]) == 0
    assert kit(["emit", *options, "--architecture", f"{files}/tiny.py:nat"]) == 2
    assert "tiny.py defines no function nat" in capsys.readouterr().err


def test_the_command_line_makes_the_same_setting(files):
    words = ["run", "--source", "digits", "--architecture", f"{files}/net.py:vit"]
    args = build_parser("").parse_args(words)
    assert Setting(**setting_of(args)).architecture == f"{files}/net.py:vit"


def test_training_stops_at_the_first_loss_that_is_no_number(files, tmp_path, capsys):
    (files / "net.py").write_text(NETS.replace("images / 255", "images * 1e30"))
    options = ["--source", "digits", "--n-train", "100", "--forget", "random:10", "--recipe", "sgd", "--slots", "1"]
    options += ["--architecture", f"{files}/net.py:Plain", "--work-dir", str(tmp_path / "runs"), "--quiet"]
    options += ["--lr", "0.2"]
    assert main(["train", *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "recipe sgd: the loss is no finite number at step " in err
    assert "learning rate" in err
    assert "take a lower rate, as --lr 0.02, or another --recipe" in err


def test_rate_and_batch_size_are_part_of_a_setting(files, tmp_path):
    plain = Setting("digits", "random:30", n_train=300, architecture="tinyconv", epochs=1, n_retain_sample=100)
    splits = data_stubs.load("digits", forget="random:30", n_train=300)
    assert plain.hash(splits) == "7aad1076e44f"  # that of before there were the two
    others = [replace(plain, **changed) for changed in ({"lr": 0.05}, {"lr": 0.1}, {"batch_size": 16})]
    assert len({setting.hash(splits) for setting in (plain, *others)}) == 4
    workspace = open_workspace(others[0], tmp_path, progress=False)
    assert reopen(workspace.folder).setting == others[0]
    facts = json.loads((workspace.folder / "setting.json").read_text())
    for name in ("lr", "batch_size"):
        del facts[name]
    (workspace.folder / "setting.json").write_text(json.dumps(facts))
    assert reopen(workspace.folder).setting == plain  # one of before
    for wrong in ({"lr": 0.0}, {"lr": float("nan")}, {"batch_size": 0}):
        with pytest.raises(InputError, match="must be"):
            replace(plain, **wrong)


@pytest.mark.parametrize("recipe", ["competition", "competition-unweighted", "competition-narrow", "fast", "sgd"])
def test_every_recipe_takes_a_rate_and_a_batch_size(recipe, monkeypatch):
    sizes, rates = [], []
    watched = recipes.finite

    def noted(name, lr, optimizer, *objective):
        sizes.clear()
        rates.append([group["lr"] for group in optimizer.param_groups])
        inner = watched(name, lr, optimizer, *objective)
        return lambda net, images, labels: sizes.append(len(labels)) or inner(net, images, labels)

    monkeypatch.setattr(recipes, "finite", noted)
    data = as_dataset(data_stubs.load("digits", forget="random:10", n_train=90).retain)
    weights = []
    for options in ({}, {"lr": 1e-6}, {"batch_size": 20}):
        torch.manual_seed(0)
        net = recipes.get_recipe(recipe, **options).fit(tinyconv(), data, 1, torch.ones(10))
        weights.append(net.fc.weight.detach().clone())
        if options.get("batch_size"):
            assert sizes == [20] * 4
    assert rates[0] == rates[2] and rates[1][0] == 1e-6
    if recipe == "fast":
        assert rates[0] == [0.15, 0.5]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_an_own_recipe_is_given_the_rate_that_it_takes(files):
    (files / "rate.py").write_text("def fit(net, dataset, epochs=1, lr=0.5): net.lr = lr\n")
    spec = f"{files}/rate.py:fit"
    nets = [
        recipes.get_recipe(spec, **options).fit(torch.nn.Linear(1, 1), None, 1, None) for options in ({}, {"lr": 0.1})
    ]
    assert [net.lr for net in nets] == [0.5, 0.1]
    with pytest.raises(InputError, match=r"--batch-size: .*fit has no parameter batch_size: give it one, or leave out"):
        recipes.get_recipe(spec, batch_size=8)


def test_rows_that_a_source_names(tmp_path):
    images, labels = np.zeros((30, 3, 8, 8), np.uint8), np.arange(30) % 3
    np.savez(tmp_path / "mine.npz", images=images, labels=labels, forget=[4, 9])
    splits = data_stubs.load(f"arrays:{tmp_path}/mine.npz", forget="given")
    assert splits.forget.ids.tolist() == ["image-000004", "image-000009"]
    with pytest.raises(InputError, match="digits names no examples to forget"):
        data_stubs.load("digits", forget="given")
