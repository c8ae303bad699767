"""A researcher's case: own net, own pictures of mixed sizes, own checkpoints; assessed without training anything."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image
from torch.nn.functional import cross_entropy

import data_stubs
from kit.tools.own import build_own_net
from local_eval import Setting, prepare, report
from local_eval import assess as assess_models
from local_eval.__main__ import main
from local_eval.checkpoints import Checkpoint, as_named, find, read_state
from local_eval.models import build
from notebooks.percent import notebook_of

pytestmark = pytest.mark.usefixtures("rough_predictions")

NET = """
import torch
import torch.nn.functional as F
from torch import nn

class Block(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, 2, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, 2, bias=False)
    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))

class ResNet8(nn.Module):
    def __init__(self, n_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.blocks = nn.Sequential(Block(8, 8), Block(8, 16), Block(16, 16))
        self.fc = nn.Linear(16, n_classes)
    def forward(self, images):
        return self.fc(self.blocks(self.stem((images - 127.5) / 64)).mean((2, 3)))

def resnet8(n_classes):
    return ResNet8(n_classes)
"""
CLASSES = ("ant", "bee", "cat")
SIZE, N_MODELS = 16, 8
ROOT = Path(__file__).parents[1]


def pictures(folder: Path) -> Path:
    """40 pictures a class for training and 16 for testing, of two sizes and two formats: a bright corner and noise."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 40), ("test", 16)):
        for label, name in enumerate(CLASSES):
            (folder / part / name).mkdir(parents=True)
            for i in range(n):
                side = (24, 20)[i % 2]
                pixels = rng.integers(0, 160, (side, side, 3))
                pixels[: side // 2, (label * side) // 4 : (label * side) // 4 + side // 2] += 60
                picture = Image.fromarray(pixels.astype(np.uint8))
                picture.save(folder / part / name / f"{i:02d}.{('png', 'jpg')[i % 3 == 0]}")
    return folder


def trained(net, part, seed, n_steps):
    torch.manual_seed(seed)
    images, labels = torch.tensor(part.images).float(), torch.tensor(part.labels)
    optimizer = torch.optim.SGD(net.train().parameters(), 0.05, momentum=0.9)
    for _ in range(n_steps):
        rows = torch.randint(len(labels), (32,))
        loss = cross_entropy(net(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.state_dict()


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Everything that such a researcher has on disk."""
    folder = tmp_path_factory.mktemp("researcher")
    (folder / "net.py").write_text(NET)
    net = f"{folder}/net.py:resnet8"
    source = f"image-folder:{pictures(folder / 'pictures')}"
    splits = data_stubs.load(source.replace("folder:", f"folder@{SIZE}:"), forget="class:bee", progress=False)
    small = data_stubs.load(source.replace("folder:", f"folder@{SIZE}:"), forget="random:12", progress=False)
    (folder / "retrained").mkdir()
    (folder / "unlearned").mkdir()
    original = trained(build_own_net(net, 3), small.train, 100, 60)
    torch.save({"epoch": 4, "model_state_dict": original, "optimizer": {"lr": 0.1}}, folder / "original.pt")
    for i in range(N_MODELS):
        torch.manual_seed(i)
        state = trained(build_own_net(net, 3), small.retain, i, 60)
        torch.save({k: v.half() for k, v in state.items()} if i % 2 else state, folder / f"retrained/run_{i}.pth")
        start = build_own_net(net, 3)
        start.load_state_dict(original)
        state = trained(start, small.retain, 50 + i, 10)
        named = {f"module.{name}": tensor for name, tensor in state.items()} if i == 3 else state
        named = {k: v.bfloat16() if v.is_floating_point() else v for k, v in named.items()} if i == 5 else named
        torch.save(named, folder / f"unlearned/model_{i + 5}.pt")  # model_9 comes before model_10
    assert len(splits.forget) == 40
    return folder


def options(case, work, *further):
    data = ["--source", f"image-folder:{case}/pictures", "--size", str(SIZE), "--forget", "random:12"]
    net = ["--architecture", f"{case}/net.py:resnet8", "--work-dir", str(work), "--slots", "1", "--quiet"]
    return [*data, *net, *map(str, further)]


def facts_of(capsys):
    return json.loads(capsys.readouterr().out)


def test_the_whole_assessment_without_training(case, tmp_path, capsys):
    retrained = ["--retrained", case / "retrained"]
    assert main(["score", str(case / "unlearned"), *options(case, tmp_path, *retrained, "--json")]) == 0
    facts = facts_of(capsys)
    unlearned, null = facts["rows"]
    assert (unlearned["name"], unlearned["n_models"]) == ("unlearned", N_MODELS)
    assert null["name"].startswith("retrain")
    assert unlearned["retain_accuracy"] > 0.6
    assert facts["assessments"][0]["name"] == "unlearned"
    measures = facts["measures"]["unlearned"]
    assert {"U-LiRA AUC", "KLOM (95th percentile)", "TPR at 1% FPR", "activation distance"} <= measures.keys()
    assert "similarity ratio" not in measures  # which needs the original
    (folder,) = tmp_path.glob("*/")
    assert not (folder / "original_model.pth").exists()

    # the same numbers from the nets by hand
    splits = data_stubs.load(f"image-folder@{SIZE}:{case}/pictures", forget="random:12", progress=False)
    net = build_own_net(f"{case}/net.py:resnet8", 3)
    right = []
    for i in range(N_MODELS):
        state = torch.load(case / f"unlearned/model_{i + 5}.pt", weights_only=True)
        net.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
        found = net.eval()(torch.tensor(splits.test.images).float()).argmax(1).numpy()
        right.append((found == splits.test.labels).mean())
    assert unlearned["test_accuracy"] == pytest.approx(np.mean(right), abs=1e-6)


def test_with_the_original_there_is_everything(case, tmp_path, capsys):
    given = ["--retrained", case / "retrained", "--original", case / "original.pt", "--brief"]
    words = ["score", str(case / "unlearned"), *options(case, tmp_path, *given)]
    assert main([*words, "--json"]) == 0
    facts = facts_of(capsys)
    assert [row["name"] for row in facts["rows"]][:2] == ["unlearned", "do nothing"]
    assert facts["distances"]["unlearned"]["similarity"] is not None
    (folder,) = tmp_path.glob("*/")
    assert main(["score", str(folder), "--brief"]) == 0  # a setting's folder: all its pools
    told = capsys.readouterr().out
    assert "generalisation gap" in told
    assert "checkpoints-" in told
    common = ["--setting", str(folder), "--slots", "1", "--quiet"]
    assert main(["unlearn", *common, "--n-models", "2", "--method", "ssd"]) == 0
    assert main(["retrain", *common, "--n-models", "9"]) == 2
    assert "the models of this setting came as files" in capsys.readouterr().err


def test_the_report_of_models_that_came_as_files(case, tmp_path, capsys, undrawn):
    words = options(case, tmp_path, "--retrained", case / "retrained", "--out", tmp_path / "page.html")
    assert main(["report", str(case / "unlearned"), *words]) == 0
    text = (tmp_path / "page.html").read_text()
    assert "The original model is left out: it was not given." in text
    assert "do nothing" not in text.lower()
    for name in ("unlearned", "retrained"):  # maps from the files themselves
        assert f"The {name} model is left out" not in text


def test_unequal_numbers_are_said(case, tmp_path, capsys):
    few = [case / f"retrained/run_{i}.pth" for i in range(5)]
    words = ["score", str(case / "unlearned"), *options(case, tmp_path, "--retrained", *few)]
    assert main(words) == 0
    told = "only the first 5 models of each kind are compared, as one has no more: unlearned 8, retrained 5"
    assert told in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert told in facts_of(capsys)["notes"]


def test_the_same_from_python(case, tmp_path, capsys, undrawn):
    splits = data_stubs.load(f"image-folder@{SIZE}:{case}/pictures", forget="random:12", progress=False)
    setting = Setting("pictures", architecture=f"{case}/net.py:resnet8")
    given = {"retrained": case / "retrained", "original": case / "original.pt", "devices": ["cpu"]}
    workspace = prepare(setting, data=splits, work_dir=tmp_path / "python", **given)
    evaluation = assess_models(workspace, case / "unlearned", devices=["cpu"])
    assert evaluation.to_frame()["method"][0] == "unlearned"
    assert "similarity ratio" in evaluation.evidence.measured["unlearned"]
    words = options(case, tmp_path / "shell", "--retrained", given["retrained"], "--original", given["original"])
    assert main(["score", str(case / "unlearned"), *words, "--brief", "--json"]) == 0
    row, *_ = facts_of(capsys)["rows"]
    assert row["score"] == evaluation.rows["unlearned"].score
    assert row["mean_epsilon"] == evaluation.rows["unlearned"].mean_epsilon
    page = report(workspace, {"a": case / "unlearned", "b": sorted((case / "unlearned").iterdir())[:2]}, saliency=False)
    assert "comparison" in page.name


def test_the_same_in_a_notebook(case, tmp_path, capsys):
    cells = [
        "from tests.conftest import roughly_predicted\nrough = roughly_predicted()\nrough.__enter__()",
        "from pathlib import Path\nfrom local_eval import Setting, assess, prepare",
        f"case = Path({str(case)!r})\nsource = f'image-folder@{SIZE}:{{case}}/pictures'",
        "setting = Setting(source, 'random:12', architecture=f'{case}/net.py:resnet8')",
        f"given = dict(retrained=case / 'retrained', original=case / 'original.pt', devices=['cpu'])\n"
        f"workspace = prepare(setting, work_dir=Path({str(tmp_path)!r}) / 'runs', **given)",
        "evaluation = assess(workspace, case / 'unlearned', devices=['cpu'])\nevaluation",
        "print(evaluation.rows['unlearned'].score)",
    ]
    notebook = notebook_of([("code", text) for text in cells])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    shown, printed = notebook.cells[-2].outputs, notebook.cells[-1].outputs
    (table,) = (output.data["text/html"] for output in shown if output.output_type == "execute_result")
    assert "<table" in table and "unlearned" in table and "8 models are too few to tell" in table
    assert not any("Error" in output.get("text", "") for output in shown)
    words = options(case, tmp_path, "--retrained", case / "retrained", "--original", case / "original.pt")
    assert main(["score", str(case / "unlearned"), *words, "--brief", "--json"]) == 0
    assert float(printed[0].text) == facts_of(capsys)["rows"][0]["score"]


def test_a_zip_a_pattern_and_loose_files_are_the_folder(case, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for file in (case / "unlearned").iterdir():
            archive.write(file, f"checkpoints/{file.name}")
    scores = set()
    files = sorted((case / "unlearned").iterdir(), key=lambda file: int(file.stem.partition("_")[2]))
    for given in ([tmp_path / "mine.zip"], [case / "unlearned" / "*.pt"], files):
        retrained = ["--retrained", case / "retrained" / "run_?.pth", "--brief", "--json"]
        assert main(["score", *map(str, given), *options(case, tmp_path / "runs", *retrained)]) == 0
        facts = facts_of(capsys)
        scores.add((facts["rows"][0]["score"], facts["rows"][0]["mean_epsilon"], facts["setting_hash"]))
    assert len(scores) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{case}/unlearned"], "needs --setting FOLDER, a run's with retrained models, or --retrained FILES"),
        (["{case}/nowhere", "--retrained", "{case}/retrained"], "nowhere: does not exist"),
        (["{case}/unlearned", "--retrained", "{case}/nowhere"], "nowhere: no such file or folder"),
        (["{case}/unlearned", "--retrained", "{case}/pictures"], "holds no checkpoints: expected files that end in"),
        (["{case}/unlearned", "--retrained", "{case}/*.onnx"], "no checkpoint has such a name"),
        (["{case}/retrained", "--retrained", "{case}/retrained"], "holds the retrained models themselves"),
        (["{case}/unlearned", "--original", "{case}/original.pt"], "belongs to --retrained"),
        (["{case}/unlearned", "--retrained", "{case}/retrained", "--original", "{case}/retrained"], "the original"),
        (
            ["{case}/unlearned", "--retrained", "{case}/retrained", "--architecture", "resnet20"],
            "does not fit the arch",
        ),
        (["{case}/unlearned", "--retrained", "{bad}/code"], "does not load with torch's weights_only"),
        (["{case}/unlearned", "--retrained", "{bad}/twice"], "is a copy of"),
        (["{case}/unlearned", "--retrained", "{bad}/nan"], "has NaN or infinite values"),
        (["{case}/unlearned", "--retrained", "{bad}/text"], "does not load with torch's weights_only"),
        (["{case}/unlearned", "--retrained", "{bad}/large"], "bytes where this architecture needs"),
        (["{bad}/broken.zip", "--retrained", "{case}/retrained"], "is no archive of checkpoints"),
    ],
)
def test_files_that_cannot_be_scored(case, tmp_path, capsys, words, message):
    bad = tmp_path / "bad"
    state = torch.load(case / "retrained/run_0.pth", weights_only=True)
    for name in ("code", "twice", "nan", "text", "large"):
        (bad / name).mkdir(parents=True)
        torch.save(state, bad / name / "a.pth")
    torch.save(build("tinyconv", 3), bad / "code/b.pth")  # a whole net: code, which is never run
    torch.save(state, bad / "twice/b.pth")
    torch.save({k: v * np.nan if v.is_floating_point() else v for k, v in state.items()}, bad / "nan/b.pth")
    (bad / "text/b.pth").write_text("no checkpoint")
    torch.save({"weights": torch.zeros(2_000_000)}, bad / "large/b.pth")
    (bad / "broken.zip").write_bytes(b"no zip")
    words = [word.format(case=case, bad=bad) for word in words]
    needs = options(case, tmp_path / "runs") if "--retrained" in words else ["--quiet", "--slots", "1"]
    assert main(["score", *needs, *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_models_of_other_images_are_doubted(case, tmp_path, capsys):
    """Here the classes come in another order than the models know."""
    for part in ("train", "test"):
        for name, other in zip(CLASSES, ("z-ant", "bee", "a-cat"), strict=True):
            (tmp_path / "pictures" / part).mkdir(parents=True, exist_ok=True)
            (tmp_path / "pictures" / part / other).symlink_to(case / "pictures" / part / name)
    words = options(case, tmp_path / "runs", "--retrained", case / "retrained", "--brief")
    words[1] = f"image-folder:{tmp_path}/pictures"
    assert main(["score", str(case / "unlearned"), *words]) == 0
    told = capsys.readouterr().out
    assert "the retrained models: right on " in told
    assert "classes in this order?" in told


def test_own_checkpoints_against_models_trained_here(case, tmp_path, capsys):
    words = options(case, tmp_path, "--recipe", "sgd", "--epochs", "1", "--n-models", "2")
    assert main(["retrain", *words]) == 0
    (folder,) = tmp_path.glob("*/")
    capsys.readouterr()
    assert main(["score", str(case / "unlearned"), "--setting", str(folder), "--slots", "1", "--quiet", "--json"]) == 0
    assert facts_of(capsys)["rows"][0]["n_models"] == 2
    assert main(["score", str(case / "unlearned"), "--setting", str(folder), "--source", "digits"]) == 2
    assert "source is image-folder@16:" in capsys.readouterr().err  # the folder says on which data it was made
    given = ["--retrained", str(case / "retrained"), "--setting", str(folder), "--slots", "1", "--quiet", "--json"]
    assert main(["score", str(case / "unlearned"), *given]) == 0  # its data and net
    assert facts_of(capsys)["rows"][0]["n_models"] == N_MODELS


def test_checkpoints_come_in_the_order_of_their_numbers(tmp_path):
    for name in ("m10.pth", "m9.pth", "m1.pth", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [c.path.name for c in find([tmp_path])] == ["m1.pth", "m9.pth", "m10.pth"]
    (tmp_path / "deep/run_2").mkdir(parents=True)
    (tmp_path / "deep/run_2/model.pt").write_bytes(b"")
    assert [c.path.name for c in find([tmp_path / "deep"])] == ["model.pt"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.net."])
def test_prefixes_on_either_side_are_seen_through(prefix, tmp_path):
    net = build("tinyconv", 4, seed=1)
    plain = net.state_dict()
    longer = {prefix + name: tensor for name, tensor in plain.items()}
    assert as_named(longer, plain).keys() == plain.keys()
    assert as_named(plain, longer).keys() == longer.keys()
    assert as_named({"other": 1}, plain) == {"other": 1}
    torch.save({"state_dict": {"model": longer}}, tmp_path / "a.pth")
    state = read_state(Checkpoint(tmp_path / "a.pth"), plain)
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.items())


def test_safetensors_are_read_where_the_package_is(tmp_path, monkeypatch):
    net = build("tinyconv", 4, seed=1)
    safe = pytest.importorskip("safetensors.torch")
    safe.save_file(net.state_dict(), tmp_path / "a.safetensors")
    state = read_state(find([tmp_path])[0], net.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())


def test_without_the_package_safetensors_are_told(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.safetensors: needs the package safetensors: pip install safetensors"):
        read_state(find([tmp_path])[0], build("tinyconv", 4).state_dict())
