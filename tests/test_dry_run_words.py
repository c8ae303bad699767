"""What a dry run says beyond its checks: Kaggle's word, what this machine lacks, what its numbers are worth."""

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kit.competition import INPUT_DIR
from kit.errors import InputError
from kit.ledger import FILE_NAME, append
from kit.tools.verify import Check
from local_eval.commands.dry_run import inputs_of
from local_eval.dry_run import kaggle_image, run, verdict
from local_eval.dry_run.causes import excuse
from local_eval.dry_run.judge import DryRun, _least_share, _takes_every_gpu, dry_run, lines_of
from local_eval.dry_run.outcome import Fault, Outcome, last_lines, read_events
from local_eval.dry_run.program import Code, Program, read_program
from local_eval.dry_run.projection import Projection, project
from local_eval.dry_run.run import how_far
from local_eval.evaluate import Sample, Samples
from notebooks.starter import STARTER, write_program

# -- the last output --------------------------------------------------------------------------------------------------


def test_what_the_kernel_says_of_itself_is_not_the_programs_last_output():
    from ipykernel.kernelapp import _ctrl_c_message

    bar = "\r".join(f"{n}/3" for n in range(4))
    chatter = f"{_ctrl_c_message}To connect another client to this kernel, use:\n    --existing k.json\n"
    text = f"first\n{chatter}{bar}\n\x1b[31mlast\n"
    assert last_lines(text) == ("first", "3/3", "last")


# -- Kaggle's word ----------------------------------------------------------------------------------------------------


def outcome_of(path, message="", kind="crash", cells=STARTER):
    fault = Fault(kind, message, "cell 1, line 1") if message else None
    return Outcome(read_program(write_program(path, cells)), fault, 0.0, 1.0, (), ())


@pytest.mark.parametrize(
    ("failing", "kind", "word"),
    [
        (["run", "archive"], "crash", "Submission CSV Not Found"),
        (["run", "archive"], "timeout", "Notebook Timeout"),
        (["run", "archive"], "died", "Notebook Exceeded Allowed Compute"),
        (["run"], "processes", "Notebook Exceeded Allowed Compute"),
        (["archive"], "", "Submission CSV Not Found"),
        (["members"], "", "Submission Scoring Error"),
        (["tensors", "size"], "", "Submission CSV Not Found"),
        (["tensors"], "", "Submission Scoring Error"),
        (["time"], "", "Notebook Timeout"),
        (["kernel"], "", "Notebook Threw Exception"),
        (["seeds", "offline", "BatchNorm"], "", None),
        ([], "", None),
    ],
)
def test_the_word_that_kaggle_would_have_shown(tmp_path, failing, kind, word):
    outcome = outcome_of(tmp_path / "p.ipynb", "it" if kind else "", kind)
    names = ["run", "kernel", "archive", "members", "tensors", "time", "size", "seeds", "offline", "BatchNorm"]
    checks = [Check(name, name not in failing, "", "mend") for name in names]
    result = DryRun(outcome.program, 8, (), outcome, checks, None, None)
    assert (result.kaggles_word, result.exit_code) == (word, 1 if failing else 0)
    last = lines_of(result)[-1]
    assert (f'Kaggle would have shown "{word}" and no more' in last) is (word is not None)
    assert (last == "Kaggle would take it") is (not failing)


def test_what_could_not_be_decided_is_no_success(tmp_path):
    outcome = outcome_of(tmp_path / "p.ipynb")
    checks = [Check("run", None, "stopped"), Check("archive", True, "")]
    result = DryRun(outcome.program, 8, (), outcome, checks, None, None)
    assert result.exit_code == 1
    assert lines_of(result) == ["?     run: stopped", "ok    archive: ", "", "no check failed, but not decided: run"]


@pytest.mark.parametrize("kernel", [{}, {"kernelspec": None}])
def test_a_notebook_without_a_kernel_fails(tmp_path, tiny, kernel):
    path = write_program(tmp_path / "p.ipynb", ("pass",))
    notebook = json.loads(path.read_text())
    notebook["metadata"] = kernel
    path.write_text(json.dumps(notebook))
    result = dry_run(read_program(path), tiny, 2, namespaces=False, progress=False)
    assert result.outcome.fault is None
    found = {check.name: check for check in result.checks}
    assert not found["kernel"].ok
    assert "Kaggle ends it at once" in found["kernel"].found
    assert result.kaggles_word == "Notebook Threw Exception"
    script = outcome_of(tmp_path / "p.py")
    assert all(check.ok for check in verdict.program_checks(script, tmp_path, 2, 100) if check.name == "kernel")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"cells": []}', "is a notebook without `metadata`"),
        ('{"cells": [], "metadata": null, "nbformat": 4}', "is a notebook without `metadata`"),
        ('{"a": 1}', "is JSON, but no notebook: it has no cells"),
        ("[1, 2]", "is JSON, but no notebook"),
        ("no JSON", "is no notebook"),
        (
            '{"cells": [{"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": 1, "source": 5}], '
            '"metadata": {}, "nbformat": 4, "nbformat_minor": 4}',
            "is no notebook",
        ),
    ],
)
def test_a_file_that_is_no_notebook_is_told_as_what_it_is(tmp_path, content, message):
    (tmp_path / "p.ipynb").write_text(content)
    with pytest.raises(InputError, match=message):
        read_program(tmp_path / "p.ipynb")


def test_how_far_a_run_came_that_saved_nothing():
    told = {"event": "progress", "batches": 340, "seconds": 102.0, "passes": [20, 170]}
    assert how_far([{"event": "seed"}]) == ""
    found = " (340 batches of its first run were seen, 0.3 s each, 170 passes over 20 images)"
    assert how_far([{**told, "batches": 1}, told, {"event": "cell"}]) == found
    assert how_far([{**told, "passes": None}]).endswith("0.3 s each, no whole pass over a loader)")


def test_a_run_that_trains_for_ever_is_told_as_far_as_it_came(tmp_path, tiny, monkeypatch):
    """Its time is over once a pass is told."""
    plain = run._Watch._exceeded

    def exceeded(watch):
        if any(event.get("passes") for event in read_events(watch.box.events)):
            watch._until = 0.0
        return plain(watch)

    monkeypatch.setattr(run._Watch, "_exceeded", exceeded)
    text = """\
import torch, time
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(6, 1)), batch_size=3)
while True:
    for batch in loader: time.sleep(0.2)
"""
    (tmp_path / "p.py").write_text(text)
    result = dry_run(read_program(tmp_path / "p.py"), tiny, 2, timeout_s=600, namespaces=False, progress=False)
    assert re.search(
        r"no checkpoint was saved \(\d+ batches of its first run were seen, 0\.\d+ s each, \d+ passes? over "
        r"6 images\): 512 would take more than",
        result.checks[0].found,
    ), result.checks[0]


# -- what this machine lacks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "text", "wanted"),
    [
        ("ModuleNotFoundError: No module named 'cv2'", "", "python -m pip install opencv-python-headless"),
        ("ModuleNotFoundError: No module named 'timm.models'", "", "python -m pip install timm"),
        ("NotImplementedError: the dry run has no GPU, and a CUDA graph cannot be pretended", "", "--device cuda"),
        ("RuntimeError: Found no NVIDIA driver on your system.", "", "--device cuda"),
        ("AcceleratorError: x\nDevice-side assertions were explicitly omitted for this error", "", "--device cuda"),
        ("AssertionError: Torch not compiled with CUDA enabled", "", "--device cuda"),
        ("ValueError: ProcessGroupNCCL is only supported with GPUs, no GPUs found!", "", "--device cuda"),
        ("RuntimeError: CUDA error: device-side assert triggered", "", None),
        ("ModuleNotFoundError: No module named 'pyhessian'", "", None),
        ("ModuleNotFoundError: No module named 'tqdm.gone'", "", None),
        ("FileNotFoundError: [Errno 2] No such file: '/kaggle/input/my-net/a.pth'", "", "--input my-net=FOLDER"),
        ("FileNotFoundError: [Errno 2] No such file: '/tmp/box/kaggle/input/my-net'", "", "--input my-net=FOLDER"),
        ("FileNotFoundError: [Errno 2] No such file: '/kaggle/input/there/a.pth'", "", None),
        (
            "ModuleNotFoundError: No module named 'mine'",
            "sys.path.append('/kaggle/input/code-of-mine')",
            "code-of-mine=",
        ),
        ("ModuleNotFoundError: No module named 'mine'", "sys.path.append('/kaggle/input/there')", None),
        ("ZeroDivisionError: division by zero", "open('/kaggle/input/my-net/a')", None),
        ("IndexError: list index out of range", "a = glob('/kaggle/input/my-net/*'); a[0]", "--input my-net=FOLDER"),
        ("ValueError: max() iterable argument is empty", "glob('/kaggle/input/my-net/*')", "--input my-net=FOLDER"),
        ("IndexError: list index out of range", "glob('/kaggle/input/there/*')", None),
    ],
)
def test_what_is_missing_here_alone_is_no_fault(tmp_path, message, text, wanted):
    for name in ("there", INPUT_DIR.name):
        (tmp_path / "input" / name).mkdir(parents=True)
    outcome = outcome_of(tmp_path / "p.ipynb", message, cells=(*STARTER, f"import sys; {text}" if text else "pass"))
    said = excuse(outcome, tmp_path / "input")
    assert (wanted in said) if wanted else said is None, said
    run = verdict.program_checks(outcome, tmp_path, 2, 100)[0]
    assert run.ok is (None if wanted else False)
    assert run.remedy


def test_packages_of_kaggles_image_are_installed(tmp_path, monkeypatch, capsys):
    imports = ("os, cv2", "pyhessian, torch", "sklearn.svm")
    cells = ("!ls\nfrom timm.models import vit\nfrom . import x", *(f"import {names}" for names in imports))
    program = read_program(write_program(tmp_path / "p.ipynb", cells))
    there = {"os", "torch", "sklearn"}
    monkeypatch.setattr(kaggle_image, "find_spec", lambda name: name if name in there else None)
    assert kaggle_image.missing_packages(program) == ["cv2", "timm"]
    calls = []

    def pip(command, **_):
        calls.append(command)
        return SimpleNamespace(returncode=len(calls) - 1, stderr="no\nERROR: no index", stdout="")

    monkeypatch.setattr(kaggle_image.subprocess, "run", pip)
    kaggle_image.install(["cv2", "timm"])
    assert calls == [[sys.executable, "-m", "pip", "install", "opencv-python-headless", "timm"]]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].endswith("python -m pip install opencv-python-headless timm")
    with pytest.raises(InputError, match="ERROR: no index: install it by hand"):
        kaggle_image.install(["timm"])


ATTACHED = """\
import os
found = [os.path.join(folder, name) for folder, _, names in os.walk("/kaggle/input/mine") for name in names]
assert found == ["/kaggle/input/mine/sub/a.txt"], found
print(open(found[0]).read())
try:
    open("/kaggle/input/mine/b.txt", "w")
except OSError:
    print("read-only")
from kaggle_secrets import UserSecretsClient
try:
    UserSecretsClient().get_secret("wandb")
except ConnectionError as error:
    print(error)
open("/kaggle/input/other/x.txt")
"""


@pytest.mark.parametrize("namespaces", [pytest.param(None, marks=pytest.mark.slow), False])
def test_attached_data_is_there_and_secrets_are_not(tmp_path, tiny, namespaces):
    (tmp_path / "mine" / "sub").mkdir(parents=True)
    (tmp_path / "mine" / "sub" / "a.txt").write_text("hello")
    (tmp_path / "p.py").write_text(ATTACHED)
    inputs = inputs_of([f"mine={tmp_path / 'mine'}"])
    result = dry_run(read_program(tmp_path / "p.py"), tiny, 2, namespaces=namespaces, inputs=inputs, progress=False)
    output = "\n".join(result.outcome.output)
    assert "hello\nread-only\nKaggle's secrets cannot be read: the internet is off" in output
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["sub"]
    assert result.checks[0].ok is None
    assert "--input other=FOLDER" in result.checks[0].remedy
    assert [check.name for check in result.checks if check.ok is False] == []
    assert lines_of(result)[-1] == "no check failed, but not decided: run, archive"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["mine"], "expected NAME=FOLDER"),
        (["=there"], "expected NAME=FOLDER"),
        (["../up=there"], "expected NAME=FOLDER"),
        (["a/b=there"], "expected NAME=FOLDER"),
        (["mine=nowhere"], "nowhere is no folder"),
        (["mine=there", "mine=there"], "is there already"),
        (["neurips-2023-machine-unlearning=there"], "is there already"),
    ],
)
def test_inputs_that_cannot_be(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    with pytest.raises(InputError, match=message):
        inputs_of(options)


# -- what the numbers are worth ---------------------------------------------------------------------------------------


def test_the_own_stand_in_ranks_and_predicts_nothing(tmp_path):
    draw = np.random.default_rng(0)
    labels = {part: draw.integers(0, 10, 12) for part in ("forget", "retain", "test")}

    def sample(n_models):
        logits = {part: draw.normal(size=(n_models, 12, 10)) for part in labels}
        return Sample(logits, labels, np.ones(n_models))

    outcome = outcome_of(tmp_path / "p.ipynb")
    samples = Samples({"mine": sample(8)}, sample(8), sample(1))
    own = DryRun(outcome.program, 8, (), outcome, [Check("run", True, "")], None, samples, own_stand_in=True)
    text = "\n".join(lines_of(own))
    assert "8 models on the dry run's own stand-in" in text
    assert "--setting FOLDER" in text
    for word in ("512", "95%", "perfect unlearner", "generalisation gap"):
        assert word not in text, text
    assert "512" in "\n".join(lines_of(replace(own, own_stand_in=False)))


@pytest.mark.parametrize(
    ("reads", "fine"),
    [
        ([(1, 100), (1, 0), (1, 0)], True),
        ([(1, 100), (1, 60), (1, 60)], False),
        ([(1, 100), (2, 100)], True),  # each process reads the data for itself
        ([(1, 130), (2, 70), (1, 0), (2, 0)], True),
        ([(1, 110), (2, 90), (1, 100), (2, 100)], False),
        ([(1, 200, 200), (2, 200, 200), (1, 0, 200)], True),  # two that read at the same time see both
        ([(1, 200, 200), (2, 200, 200), (1, 200, 400), (2, 200, 400)], False),
    ],
)
def test_data_that_is_read_in_every_run(tmp_path, reads, fine):
    """reads: process, images read in its run by any process, and by all since the start where that is no sum."""
    saves = [
        {"event": "save", "pid": pid, "t": t, "reads": n, "first_read": None} for t, (pid, n, *_) in enumerate(reads)
    ]
    for t, (save, (_, _, *in_all)) in enumerate(zip(saves, reads, strict=True)):
        save["reads_in_all"] = in_all[0] if in_all else sum(n for _, n, *_ in reads[: t + 1])
    outcome = replace(outcome_of(tmp_path / "p.ipynb"), events=tuple({**save, "path": None} for save in saves))
    (data,) = (check for check in verdict.program_checks(outcome, tmp_path, 2, 100) if check.name == "data")
    assert data.ok is fine


def test_a_method_in_a_file_has_both_cards_that_kaggle_gives(tmp_path):
    saves = [
        {"event": "save", "pid": 1, "t": t, "seconds": 0.0, "path": None, "nested": [], "drawn": [[100, 64, 1000]]}
        | {"seen": {"trained": 1000}}
        for t in (1.0, 2.0)
    ]
    outcome = replace(outcome_of(tmp_path / "p.ipynb"), events=tuple(saves), start_s=0.0, end_s=2.0)
    one, both = (project(outcome, {"retain": 100}, 2, every_gpu=every).on for every in (False, True))
    assert both == one | {"pair of T4": pytest.approx(one["T4"] / 2, rel=0.01)}
    check = verdict.time_check(project(outcome, {"retain": 100}, 2, every_gpu=True))
    assert "on a pair of T4" in check.found
    path = tmp_path / FILE_NAME
    by_file = Program(path, None, (Code(1, 'submit(\n    "unlearning_method.py", **SETTINGS)'),))
    assert not _takes_every_gpu(by_file, path), "no run of the kit"
    append(path, "start", method="x")
    assert _takes_every_gpu(by_file, path)
    assert not _takes_every_gpu(Program(path, None, (Code(1, "submit(unlearning)"),)), path)


def test_a_plan_of_the_kits_keeps_what_is_too_long_within_the_limit(tmp_path):
    projection = Projection(3600.0, {"P100": 9 * 3600.0, "T4": 16 * 3600.0}, 6.0, 60.0)
    plain = verdict.time_check(projection)
    assert not plain.ok
    assert "do 89% of it in each run" in plain.remedy
    path = tmp_path / FILE_NAME
    assert _least_share(path) == 1
    append(path, "plan", steps=100, wanted=100, fixed_s=0.1, step_s=0.1)
    planned = verdict.time_check(projection, _least_share(path))
    assert planned.ok
    assert "the kit's plan keeps to it, with about 89% of each on a P100 and about 50% of each on a T4" in planned.found
    path.unlink()
    append(path, "plan", steps=10, wanted=10, fixed_s=10.0, step_s=0.1)  # hardly any of it is steps
    assert not verdict.time_check(projection, _least_share(path)).ok
    path.write_text("no ledger\n")
    assert _least_share(path) == 1


def test_swapped_tables_are_told():
    assert "swapped" not in verdict.tables_check({"retain": 40, "forget": 4, "validation": 4}).found
    assert "forget.csv swapped?" in verdict.tables_check({"retain": 4, "forget": 40, "validation": 4}).found


def test_checkpoints_beside_the_archive_are_told(tmp_path):
    (archive := tmp_path / "submission.zip").write_bytes(b"x")
    assert "left" not in verdict.size_check(tmp_path, archive, 8).found
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.pth").write_bytes(b"x")
    check = verdict.size_check(tmp_path, archive, 8)
    assert check.ok
    assert check.found.endswith("1 checkpoints are left beside the archive, such as deep/a.pth")


def test_ctrl_c_is_one_line_and_130(tmp_path, tiny):
    temporary = Path(tempfile.mkdtemp())  # in a longer path, as tmp_path may be, no sandbox is made
    program = tmp_path / "p.py"
    program.write_text("import time\nopen('/kaggle/working/begun', 'w').close()\ntime.sleep(600)\n")
    script = f"""\
import signal, sys
from pathlib import Path
from local_eval.__main__ import main
from tests.interrupting import interrupt_once_begun
interrupt_once_begun(Path({str(temporary)!r}))
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(["dry-run", {str(program)!r}, "--data", {str(tiny.tree)!r}, "--no-score", "--quiet"]))
"""
    options = {"env": {**os.environ, "TMPDIR": str(temporary)}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", script], timeout=300, check=False, **options)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines() == ["interrupted: the program is ended, models trained for its score are kept"]
    temporary.rmdir()  # nothing is left in it
