"""A user's mistake: one clear line on stderr, exit code 2, no traceback, nothing lost."""

import errno
import json
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kit.__main__ import main as kit
from kit.competition import MODEL_FILE
from kit.tools import cli
from local_eval.__main__ import main as local_eval
from local_eval.pool import ModelPool
from local_eval.setting import Setting

ROOT = Path(__file__).parents[1]


def told(capsys, main, *argv):
    """Run a command that must fail, and give its one line."""
    code = main([str(argument) for argument in argv])
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture
def folder(tmp_path):
    """Two classes of four images each, for training and testing."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pictures" / part / name).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pictures" / part / name / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture
def run(tmp_path, capsys):
    def command(*argv, source="digits"):
        common = ["--source", source, "--work-dir", tmp_path / "runs", "--quiet", "--slots", 1]
        return told(capsys, local_eval, "run", *common, "--architecture", "tinyconv", "--forget", "random:30", *argv)

    return command


def test_images_that_are_missing_or_broken(folder, run):
    (folder / "train/dog/2.png").write_bytes(b"no picture")
    assert "2.png" in run("--forget", "random:2", source=f"image-folder:{folder}")
    (folder / "train/dog/2.png").unlink()
    assert "nowhere" in run(source="image-folder:nowhere")


def test_forget_sets_that_cannot_be(tmp_path, run):
    np.save(tmp_path / "outside.npy", np.array([0, 5000]))
    np.save(tmp_path / "empty.npy", np.array([], dtype=np.int64))
    assert "5000" in run("--forget", f"indices:{tmp_path / 'outside.npy'}")
    assert "no example" in run("--forget", f"indices:{tmp_path / 'empty.npy'}") or "empty" in run()
    assert "random" in run("--forget", "random:0")
    assert "class" in run("--forget", "class:12")
    assert "unknown" in run("--forget", "sometimes")
    assert "forget policy '' is unknown" in run("--forget", "")


def test_a_class_without_retain_example(folder, tmp_path, run):
    np.save(tmp_path / "dogs.npy", np.arange(4, 8))
    line = run("--forget", f"indices:{tmp_path / 'dogs.npy'}", source=f"image-folder:{folder}")
    assert "dog" in line
    assert "no retain example" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n-models", 1], "needs at least 2 models"),
        (["--n-models", -3], "needs at least 2 models"),
        (["--method", "magic"], "method 'magic': unknown"),
        (["--method", "nowhere.py"], "nowhere.py: no such file"),
        (["--set", "speed=1"], "has no hyper-parameter 'speed'"),
        (["--set", "lr=quick"], "expected float"),
        (["--limit", "soon"], "expected a positive time"),
        (["--limit", "0.01s", "--n-models", 2, "--n-train", 300, "--epochs", 1], "raise the limit"),
        (["--recipe", "cake"], "recipe 'cake': unknown"),
        (["--architecture", "resnet19"], "architecture 'resnet19': unknown"),
        (["--epochs", -1], "must be positive"),
        (["--epochs", "inf"], "must be positive"),
        (["--cap", "inf"], "cap is inf: give a finite number above 0"),
        (["--setting", "nowhere"], "nowhere: is no folder of a setting"),
    ],
)
def test_options_that_cannot_be(run, options, message):
    assert message in run(*options)


def test_sources_that_cannot_be(run, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "unknown" in run(source="imagenet")
    import torchvision

    def offline(*args, download=False, **kwargs):
        raise OSError("no network") if download else RuntimeError("Dataset not found")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    assert "--data-root" in run(source="cifar10")


def test_a_work_dir_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    line = told(capsys, local_eval, "run", "--source", "digits", "--work-dir", tmp_path / "file", "--slots", 1)
    assert "cannot be written" in line


def test_scores_of_nothing(capsys, tmp_path):
    assert "give the folder of a pool" in told(capsys, local_eval, "score")
    assert "is" in told(capsys, local_eval, "score", tmp_path)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    assert "has no array unlearned_confidence" in told(
        capsys, local_eval, "score", "--confidences", tmp_path / "other.npz"
    )
    (tmp_path / "text.npz").write_text("text")
    assert "is no readable .npz" in told(capsys, local_eval, "score", "--confidences", tmp_path / "text.npz")
    objects = np.array([[{}]], dtype=object)
    np.savez(tmp_path / "objects.npz", unlearned_confidence=objects, retrained_confidence=objects)
    assert "is no readable .npz" in told(capsys, local_eval, "score", "--confidences", tmp_path / "objects.npz")
    bad = np.array([[0.0, np.nan], [1.0, 2.0]])
    np.savez(tmp_path / "nan.npz", unlearned_confidence=bad, retrained_confidence=np.zeros((2, 2)))
    assert "error" in told(capsys, local_eval, "score", "--confidences", tmp_path / "nan.npz")


def emit(tree, out, *argv):
    architecture = ["--architecture", f"{tree.parent / 'net.py'}:net"]
    return ["emit", "--input", tree, "--out", out, "--quiet", "--device", "cpu", *architecture, *argv]


def test_emit_writes_and_verify_agrees(tree, tmp_path, capsys):
    arguments = emit(tree, tmp_path, "--n-models", 2, "--limit", "60s")
    assert kit([str(argument) for argument in arguments]) == 0
    assert "2 checkpoints in" in capsys.readouterr().out
    architecture = f"{tree.parent / 'net.py'}:net"
    options = ["--n-models", "2", "--original", str(tree / MODEL_FILE), "--architecture", architecture, "--quiet"]
    assert kit(["verify", str(tmp_path / "submission.zip"), *options]) == 0
    assert kit(["verify", str(tmp_path / "submission.zip"), *options, "--n-models", "3"]) == 1
    profile = [str(argument) for argument in emit(tree, tmp_path, "--n-models", 2, "--limit", "60s")]
    profile = ["profile", *profile[1:3], *profile[5:]]
    assert kit(profile) == 0
    assert kit([*profile, "--limit", "1ms", "--n-models", "512"]) == 2
    assert kit([*profile, "--limit", "0.001s", "--n-models", "512"]) == 1


def test_swapped_tables_are_told_and_no_reason_to_stop(tree, tmp_path, capsys):
    swapped = shutil.copytree(tree, tmp_path / "tree")
    shutil.copyfile(tree.parent / "net.py", tmp_path / "net.py")
    shutil.copyfile(tree / "retain.csv", swapped / "forget.csv")
    shutil.copyfile(tree / "forget.csv", swapped / "retain.csv")
    for root, told_so in ((tree, False), (swapped, True)):
        arguments = emit(root, tmp_path / root.parent.name, "--n-models", 1, "--slots", 1)
        assert kit([str(argument) for argument in arguments]) == 0
        assert ("retain.csv and forget.csv swapped?" in capsys.readouterr().err) is told_so


def test_emit_with_mistakes(tree, tmp_path, capsys):
    assert "no such file" in told(capsys, kit, *emit(tree, tmp_path, "--input", "nowhere"))
    assert "raise the limit" in told(capsys, kit, *emit(tree, tmp_path / "a", "--n-models", 3, "--limit", "0.01s"))
    assert "device 'warp'" in told(capsys, kit, *emit(tree, tmp_path, "--device", "warp"))
    wrong = [
        argument for argument in emit(tree, tmp_path) if "net.py" not in str(argument) and argument != "--architecture"
    ]
    assert "mend the file or the architecture" in told(capsys, kit, *wrong)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in told(capsys, kit, *emit(tree, tmp_path / "file", "--n-models", 1))


def test_a_mistake_on_a_real_command_line_leaves_no_traceback():
    command = [sys.executable, "-m", "kit", "methods", "magic"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "method 'magic': unknown" in done.stderr
    assert subprocess.run([*command[:3], "bake"], cwd=ROOT, capture_output=True).returncode == 2


def test_a_closed_output_does_not_change_the_exit_code():
    line = f'"{sys.executable}" -m kit methods finetune >&-'
    done = subprocess.run(line, shell=True, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("text", ["null", "[1]", "[]", json.dumps({one.name: 5 for one in fields(Setting)})])
def test_settings_that_were_edited_into_something_else(text, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/setting.json").write_text(text)
    assert "setting.json: cannot be read" in told(capsys, local_eval, "run", "--setting", tmp_path / "a")
    if text[0] != "{":
        assert local_eval(["list", "--work-dir", str(tmp_path)]) == 1
        assert "setting.json: cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "message"), [("pool.json", "cannot be read"), ("report.json", None)])
def test_pools_whose_files_were_edited_into_something_else(name, message, tmp_path, capsys):
    ModelPool(tmp_path / "a/p", {"kind": "retrained"})
    (tmp_path / "a/setting.json").write_text('{"source": "digits"}')
    (tmp_path / "a/p" / name).write_text("[1]")
    ModelPool(tmp_path / "a/q", {"kind": "retrained"})
    assert local_eval(["list", "--work-dir", str(tmp_path), "--json"]) == (1 if message else 0)
    found = json.loads(capsys.readouterr().out)
    assert [row["pool"] for row in found["pools"]] == (["q"] if message else ["p", "q"])
    assert message is None or message in found["faults"][0]


@pytest.mark.parametrize("raised", [PermissionError(13, "Permission denied", "/a/b"), OSError(28, "No space left")])
def test_a_forbidden_or_full_place_is_told_in_one_line(raised, capsys):
    def fail(args):
        raise raised

    parser = cli.Parser()
    parser.set_defaults(command=fail)
    line = told(capsys, lambda argv: cli.run(parser, argv))
    assert f"{raised.filename or 'a file'}: {raised.strerror}: choose another place or mend this one; " in line
    raised.errno = errno.EIO  # anything else is not ours to explain
    with pytest.raises(OSError):
        cli.run(parser, [])
