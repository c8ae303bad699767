"""The commands of README and docs/ run, on a stand-in of few images and models. Those of extend.md run as they stand
in test_docs_extend.py; benchmarks take hours and leave records; `kaggle ...` needs an account and the internet; a
Ray cluster has test_local_eval_cluster.py."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kit.tools.own import build_own_net
from tests.test_docs import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
DATA = [
    "--source",
    "digits",
    "--forget",
    "random:20",
    "--n-train",
    "200",
    "--architecture",
    "tinyconv",
    "--epochs",
    "1",
]
FEW = ["--n-models", "8", "--slots", "1", "--device", "cpu", "--quiet"]
SEARCH = ["--n-models", "4", "--trials", "2", "--check-models", "0", "--limit", "1m"]
# Named in a sentence, where what they are about stands before them.
WITHOUT_ARGUMENTS = {
    "python -m kit emit --limit 8h",
    "python -m kit profile",
    "python -m local_eval compare",
    "python -m local_eval tree --out TREE",
    "python -m notebooks.build --method",
    "python -m notebooks.build --sources",  # of this folder itself: test_notebooks.py
}


def runs(page, command):
    module = command.split()[2]
    elsewhere = module.startswith(("benchmarks", "pytest")) or "--engine ray" in command or page == "extend.md"
    return not elsewhere and command not in WITHOUT_ARGUMENTS


HERE = sorted({" ".join(command.partition("  #")[0].split()) for page, command in COMMANDS if runs(page, command)})


def on_small_data(command, folder):
    """The words of a command: data, models and minutes are few, placeholders are what lies in the folder."""
    words = shlex.split(command, comments=True)[2:]
    setting = next(folder.glob("runs/*/finetune-*")).parent.name
    pools = {path.name.partition("-")[0]: path.name for path in (folder / "runs" / setting).glob("*-*")}
    text = "\0".join(words).replace("--like\0competition", "").replace("SETTING", setting).replace("--quick", "")
    text = re.sub(r"(\w+)-HASH", lambda found: pools[found[1]], text).replace("/POOL", f"/{pools['finetune']}")
    for name, value in {
        "image-folder:PATH": "image-folder:pictures",
        "file.py": "mine.py",
        "cifar10": "digits",
    }.items():
        text = text.replace(name, value)
    text = (
        text.replace("$SLURM_ARRAY_TASK_ID", "1")
        .replace("export\0FILE", "export\0pool")
        .replace("FILE", "file")
        .replace("NAME", "finetune")
    )
    words = [word for word in text.split("\0") if word]
    program, name = words[0], words[1]
    if program == "local_eval" and name in ("run", "sweep", "retrain", "unlearn", "leaderboard", "train", "tune"):
        pictures = "image-folder:pictures" in words
        given = "--setting" in words
        small = [*DATA[2:], "--n-train", "120", "--size", "16"] if pictures else [] if given else DATA
        few = {"train": FEW[2:], "tune": [*FEW[2:], *SEARCH]}.get(name, FEW)
        named = ["--methods", "finetune, ssd"] if name == "leaderboard" and not given else []
        return [*words, *small, *few, *named]
    if name == "tree":
        return [*words, "--n-train", "200"]
    if name == "dry-run":
        return [*words, "--n-models", "2", *(["--data", "tree"] if "--data" in words else [])]
    return [*words, "--n-models", "8"] if command == "python -m kit verify submission.zip" else words


def run(folder, words):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", *words], cwd=folder, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a page's reader has by then: a tree, an archive, a setting with two methods, arrays, pictures, a file."""
    folder = tmp_path_factory.mktemp("pages")
    rng = np.random.default_rng(0)
    for part, n in (("train", 80), ("test", 20)):
        for name in ("ant", "bee"):
            (folder / "pictures" / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "pictures" / part / name / f"{i}.png")
    u, r = rng.normal(size=(2, 16, 30))
    np.savez(folder / "file.npz", unlearned_confidence=u, retrained_confidence=r)
    np.savez(
        folder / "logits.npz",
        unlearned=np.stack([u, -u], -1),
        retrained=np.stack([r, -r], -1),
        labels=rng.integers(0, 2, 30),
    )
    for name, array in dict(np.load(folder / "logits.npz")).items():
        np.save(folder / f"{name}.npy", array)
    (folder / "net.py").write_text(
        "from torch import nn\ndef small(n_classes):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, n_classes))\n"
    )
    for kind in ("unlearned", "retrained"):
        (folder / kind).mkdir()
        for i in range(8):
            torch.save(build_own_net(f"{folder}/net.py:small", 2).state_dict(), folder / kind / f"model_{i}.pth")
    torch.save(build_own_net(f"{folder}/net.py:small", 2).state_dict(), folder / "original.pth")
    text = "import torch\ndef unlearning(net, a, b, c): net.fc.bias.data += torch.randn_like(net.fc.bias)\n"
    (folder / "mine.py").write_text(text)
    methods = (["local_eval", "run", "--method", name, *DATA, *FEW] for name in ("finetune", "random_perturbation"))
    tree = "local_eval tree --source digits --architecture resnet18 --recipe sgd --epochs 1 --n-train 200 --out tree"
    emit = "kit emit --input tree --out out --n-models 8 --quiet"
    build = "notebooks.build --method finetune --out mine/finetune.ipynb"
    for words in (*methods, tree.split(), emit.split(), build.split()):
        done = run(folder, words)
        assert done.returncode == 0, done.stderr[-2000:]
    (folder / "submission.zip").write_bytes((folder / "out/submission.zip").read_bytes())
    return folder


def test_what_is_left_out_is_on_a_page():
    assert {command for _, command in COMMANDS} >= WITHOUT_ARGUMENTS
    assert len(HERE) > 30


@pytest.mark.slow
@pytest.mark.parametrize("command", HERE)
def test_a_command_of_a_page_runs(folder, command):
    done = run(folder, on_small_data(command, folder))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
