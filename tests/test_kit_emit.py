import functools
import json
import re
import sys
import zipfile

import numpy as np
import pytest
import torch

import data_stubs
from data_stubs.kaggle_tree import write_tree
from kit import checkpoint as checkpoint_module
from kit import preflight
from kit.__main__ import main
from kit.competition import make_loaders, resnet18
from kit.emit import emit
from kit.errors import InputError
from kit.methods import get_method, method_from_file, method_of
from kit.seeds import checkpoint_seed
from kit.submit import _travels, submit
from tests.conftest import dataset

FINETUNE = get_method("finetune", ["epochs=2"])
MINE = "def unlearning(net, a, b, c): pass\n"


def run(model, loaders, out, n=4, method=FINETUNE, **options):
    return emit(method, model, loaders, out=out, n_checkpoints=n, progress=False, **options)


def members(archive):
    with zipfile.ZipFile(archive) as file:
        return {info.filename: file.read(info) for info in file.infolist()}


def ledger_of(out):
    return [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]


def test_the_archive_is_named_and_typed_as_the_contract_says(model, loaders, tmp_path):
    result = run(model, loaders, tmp_path, n=3)
    assert result.archive == tmp_path / "submission.zip"
    assert result.faults == []
    contents = members(result.archive)
    assert list(contents) == [f"kaggle/tmp/unlearned_checkpoint_{i}.pth" for i in range(3)]
    with zipfile.ZipFile(result.archive) as file:
        assert file.testzip() is None
        assert all(info.compress_type == zipfile.ZIP_STORED for info in file.infolist())
        with file.open("kaggle/tmp/unlearned_checkpoint_1.pth") as member:
            state = torch.load(member, weights_only=True)
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {
        k: (v.shape, v.dtype) for k, v in model.state_dict().items()
    }
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"submission.zip", "ledger.jsonl"}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_none_of_them(model, loaders, tmp_path):
    first = run(model, loaders, tmp_path / "a").archive.read_bytes()
    assert run(model, loaders, tmp_path / "b").archive.read_bytes() == first
    ours, others = members(tmp_path / "a/submission.zip"), members(run(model, loaders, tmp_path / "c", seed=1).archive)
    assert not set(ours.values()) & set(others.values())


def test_integers_of_numpy_are_integers(model, loaders, tmp_path):
    whole = run(model, loaders, tmp_path / "plain", n=2, seed=3).archive.read_bytes()
    for _ in range(2):  # the second finds what the first wrote down
        assert run(model, loaders, tmp_path / "own", n=np.int64(2), seed=np.int64(3)).archive.read_bytes() == whole


def test_float16_halves_the_checkpoints_and_counters_stay_integers(model, loaders, tmp_path):
    result = run(model, loaders, tmp_path, n=2, dtype=torch.float16)
    assert result.faults == []
    with zipfile.ZipFile(result.archive) as file, file.open(file.namelist()[0]) as member:
        types = {tensor.dtype for tensor in torch.load(member, weights_only=True).values()}
    assert types == {torch.float16, torch.int64}


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_run_continues_to_the_same_bytes(model, loaders, tmp_path, monkeypatch, after):
    whole = run(model, loaders, tmp_path / "whole").archive.read_bytes()
    plain, count = checkpoint_module.unlearn_once, [0]

    def interrupted(*args, **kwargs):
        if count[0] == after:
            raise KeyboardInterrupt
        count[0] += 1
        return plain(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint_module, "unlearn_once", interrupted)
        run(model, loaders, tmp_path / "parts")
    assert not (tmp_path / "parts/submission.zip").exists()
    (folder,) = (tmp_path / "parts/checkpoints").iterdir()
    assert len(list(folder.iterdir())) == after
    (folder / ".unlearned_checkpoint_9.pth.1").write_bytes(b"half a checkpoint")  # what a kill while writing leaves
    (tmp_path / "parts/submission.zip.partial").write_bytes(b"half an archive")
    with (tmp_path / "parts/ledger.jsonl").open("a") as file:
        file.write('{"event": "checkpo')
    made = []
    monkeypatch.setattr(checkpoint_module, "unlearn_once", lambda *a, **k: made.append(k["index"]) or plain(*a, **k))
    assert run(model, loaders, tmp_path / "parts").archive.read_bytes() == whole
    assert made == list(range(after, 4))


def test_a_missing_checkpoint_alone_is_made_again(model, loaders, tmp_path, monkeypatch):
    whole = run(model, loaders, tmp_path / "whole").archive.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(sys.modules["kit.emit"], "pack", stop)
        run(model, loaders, tmp_path / "parts")
    (file,) = (tmp_path / "parts/checkpoints").rglob("*_1.pth")
    file.unlink()
    made, plain = [], checkpoint_module.unlearn_once
    monkeypatch.setattr(checkpoint_module, "unlearn_once", lambda *a, **k: made.append(k["index"]) or plain(*a, **k))
    again = run(model, loaders, tmp_path / "parts")
    assert (made, again.archive.read_bytes()) == ([1], whole)
    assert len(again.checkpoint_s) == 4


def stop(*_):
    raise Stop


def test_a_finished_run_is_not_made_again(model, loaders, tmp_path, monkeypatch):
    first = run(model, loaders, tmp_path)
    monkeypatch.setattr(checkpoint_module, "unlearn_once", lambda *a, **k: pytest.fail("made again"))
    again = run(model, loaders, tmp_path)
    assert again.archive.read_bytes() == first.archive.read_bytes()
    assert again.checkpoint_s == first.checkpoint_s


@pytest.mark.parametrize(
    "change", [{"seed": 5}, {"n": 5}, {"dtype": torch.float16}, {"method": get_method("finetune")}]
)
def test_another_runs_folder_is_refused(model, loaders, tmp_path, change):
    before = run(model, loaders, tmp_path).archive.read_bytes()
    with pytest.raises(InputError, match="belongs to another run"):
        run(model, loaders, tmp_path, **change)
    assert (tmp_path / "submission.zip").read_bytes() == before


def test_the_command_says_what_it_reuses(tree, tmp_path, capsys):
    words = [
        "emit",
        "--input",
        str(tree),
        "--out",
        str(tmp_path / "out"),
        "--architecture",
        f"{tree.parent}/net.py:net",
    ]
    words += ["--n-models", "2", "--device", "cpu", "--quiet"]
    for kept in (0, 2):
        assert main([*words, "--json"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["reused"] == kept
        assert (f"reused {kept} checkpoints of finetune in {tmp_path / 'out'}" in err) == bool(kept)


@pytest.mark.parametrize("change", ["batch size", "data", "method's source", "method's default"])
def test_a_run_of_another_identity_is_refused(model, loaders, tmp_path, participant, change):
    """What a plain look at method's name and number of examples would not tell."""
    text = "def unlearning(net, a, b, c, strength=1.0):\n    net.fc.bias.data.normal_()\n"
    run(model, loaders, tmp_path / "out", method=get_method(participant(text)))
    method, others = get_method(participant(text)), loaders
    if change == "batch size":
        others = make_loaders(*(loader.dataset for loader in loaders), batch_size=4)
    elif change == "data":
        others = make_loaders(dataset(50, 9), *(loader.dataset for loader in loaders[1:]), batch_size=8)
    elif change == "method's source":
        method = get_method(participant(text.replace("normal_()", "normal_(std=2)")))
    else:
        method = get_method(participant(text), ["strength=2"])
    with pytest.raises(InputError, match="belongs to another run"):
        run(model, others, tmp_path / "out", method=method)


def test_an_object_that_is_called_is_another_method_once_its_class_is_edited(participant):
    text = "class Noise:\n    def __call__(self, net, a, b, c):\n        net.fc.bias.data.normal_()\n"
    text += "unlearning = Noise()\n"
    first, same = (get_method(participant(text)).identity for _ in range(2))
    assert first == same != get_method(participant(text.replace("normal_()", "normal_(std=2)"))).identity


def test_a_default_without_a_plain_value_has_an_identity_too(model, loaders, tmp_path, participant):
    text = "import torch\ndef unlearning(net, a, b, c, loss=torch.nn.functional.cross_entropy, more=object()):\n"
    text += "    net.fc.bias.data.normal_()\n"
    first = run(model, loaders, tmp_path, method=get_method(participant(text)))
    assert run(model, loaders, tmp_path, method=get_method(participant(text))).checkpoint_s == first.checkpoint_s


def test_a_partial_function_is_a_method(model, loaders, tmp_path):
    def noise(net, retain, forget, validation, scale=1.0):
        net.fc.bias.data.normal_(std=scale)

    method = method_of(functools.partial(noise, scale=3.0))
    assert (method.name, method.settings) == ("noise", {"scale": 3.0})
    assert run(model, loaders, tmp_path, method=method).faults == []
    with pytest.raises(InputError, match="belongs to another run"):
        run(model, loaders, tmp_path, method=method_of(functools.partial(noise, scale=2.0)))


def test_a_damaged_checkpoint_is_told_and_made_again(model, loaders, tmp_path, monkeypatch):
    whole = run(model, loaders, tmp_path / "whole").archive.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(sys.modules["kit.emit"], "pack", stop)
        run(model, loaders, tmp_path / "out")
    (file,) = (tmp_path / "out/checkpoints").rglob("*_2.pth")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"_2\.pth: is damaged: delete it"):
        run(model, loaders, tmp_path / "out")
    assert not (tmp_path / "out/submission.zip").exists()
    file.unlink()
    assert run(model, loaders, tmp_path / "out").archive.read_bytes() == whole


def test_an_unwritable_folder_and_too_small_a_disk_are_told_at_once(model, loaders, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        run(model, loaders, tmp_path / "file" / "out")
    disk(monkeypatch, 1000)
    with pytest.raises(InputError, match=r"0\.0 GB free, still to be written are .* GB in .* and .* GB in .*out"):
        run(model, loaders, tmp_path / "out", work=tmp_path / "tmp")


def disk(monkeypatch, free):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free})())


def test_the_limit_of_a_notebooks_output_counts_for_its_own_folder_alone(tmp_path, monkeypatch):
    disk(monkeypatch, 500 * 10**9)
    working, files = tmp_path / "working", tmp_path / "tmp"
    monkeypatch.setattr(preflight, "WORKING_DIR", working)
    working.mkdir()
    files.mkdir()
    preflight.check_disk({files: 12 * 10**9, working: 12 * 10**9})  # 24 GB on one disk
    with pytest.raises(InputError, match=r"working: 20.0 GB free, still .* 23.0 GB in \S+working: store"):
        preflight.check_disk({files: 1, working: 23 * 10**9})


def test_a_finished_run_asks_for_no_space(model, loaders, tmp_path, monkeypatch):
    first = run(model, loaders, tmp_path)
    disk(monkeypatch, 0)
    again = run(model, loaders, tmp_path)
    assert (again.faults, again.checkpoint_s) == ([], first.checkpoint_s)


def test_checkpoints_are_computed_with_one_thread(model, loaders, tmp_path):
    used = []

    def unlearning(net, retain, forget, validation):
        used.append(torch.get_num_threads())
        net.fc.bias.data.fill_(torch.randn(()).item())

    torch.set_num_threads(2)
    try:
        run(model, loaders, tmp_path, n=2, method=method_of(unlearning))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert used == [1, 1]


def test_seeds_of_checkpoints_runs_and_retries_all_differ():
    seeds = {checkpoint_seed(s, i, a) for s in range(4) for i in range(-2, 512) for a in range(3)}
    assert len(seeds) == 4 * 514 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_several_processes_write_the_same_submission(tmp_path):
    splits = data_stubs.load("digits", forget="random:8", n_train=40)
    torch.manual_seed(0)
    root = write_tree(splits, resnet18().state_dict(), tmp_path / "tree")
    options = {"root": root, "n_checkpoints": 3, "limit": "1h", "progress": False, "settings": {"lr": 0.003}}
    unlearn = get_method("negative_gradient").function
    archives = []
    for n_processes in (1, 2):
        out = tmp_path / str(n_processes)
        out.mkdir()
        archives.append(submit(unlearn, out=out, work=out / "tmp", devices=["cpu"] * n_processes, **options))
    assert len({archive.read_bytes() for archive in archives}) == 1, "byte for byte"
    assert not list((tmp_path / "1/tmp").iterdir()), "the checkpoints are in the archive, and only there"


MISTAKES = (
    ({"settings": {"speed": 1}}, "has no hyper-parameter 'speed': it has epochs, lr"),
    ({"dtype": "float8"}, "dtype 'float8': unknown"),
    ({"limit": "soon"}, "expected a positive time such as 8h"),
    ({"limit": float("inf")}, "expected a positive time such as 8h"),
    ({"n_checkpoints": "512"}, "n_checkpoints is '512': a submission needs a whole number, 1 at least"),
    ({"n_checkpoints": 0}, "n_checkpoints is 0"),
    ({"devices": "tpu"}, "device 'tpu' cannot be used"),
)


@pytest.mark.parametrize(
    ("public", "options", "message"),
    [(False, *mistake) for mistake in MISTAKES] + [(True, *mistake) for mistake in MISTAKES[:-1]],
)
def test_mistakes_in_a_run_cell_are_told_before_anything_is_read(tree, tmp_path, public, options, message):
    if public:  # what Kaggle shows of a submission is its run on the public stand-in, which needs no device
        (tree / "empty.txt").touch()
    out = tmp_path / "out"
    with pytest.raises(InputError, match=message):
        submit(get_method("finetune").function, root=tree, out=out, work=tmp_path / "tmp", **options)
    assert not out.exists() or not list(out.iterdir())


def test_an_argument_that_there_is_not_is_told_on_the_public_stand_in(tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(TypeError, match="unexpected keyword argument 'n_models'"):
        submit(FINETUNE, n_models=2, root=tmp_path, out=tmp_path / "out")


def test_a_broken_method_file_is_told_on_the_public_stand_in(tmp_path, participant):
    path = participant("def unlearning(net, retain\n")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(InputError, match=r"mine\.py, line 1: SyntaxError"):
        submit(path, root=tmp_path, out=tmp_path / "out")
    participant(MINE)
    assert submit(path, root=tmp_path, out=tmp_path / "out").read_bytes() == b""


def test_a_function_that_no_other_process_can_read_uses_one_device(participant):
    def closure(net, a, b, c): ...

    assert _travels(method_of(FINETUNE.function)) and _travels(method_from_file(participant(MINE)))
    assert not _travels(method_of(closure))
    here = type(closure)(closure.__code__, {"__name__": "__main__"}, "cell")
    here.__qualname__ = "cell"
    main_module = sys.modules["__main__"]
    main_module.cell = here
    try:
        assert not _travels(method_of(here, "cell")) and not _travels(method_of(functools.partial(here), "cell"))
    finally:
        del main_module.cell


def test_the_methods_own_line_is_named_beside_those_of_packages(model, loaders, tmp_path):
    package = tmp_path / "dist-packages" / "some_package.py"
    package.parent.mkdir()
    package.write_text("def fail():\n    raise ValueError('no')\n")
    mine = tmp_path / "mine.py"
    mine.write_text("from some_package import fail\n\ndef unlearning(net, a, b, c):\n    fail()\n")
    sys.path.insert(0, str(package.parent))
    try:
        with pytest.raises(InputError, match=r"ValueError: no \(\S*mine.py, line 4\)"):
            run(model, loaders, tmp_path / "out", method=method_from_file(str(mine)))
    finally:
        sys.path.remove(str(package.parent))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "complex64", "int8", "half?"])
def test_a_type_that_no_checkpoint_has_is_told_at_once(dtype, tmp_path):
    with pytest.raises(InputError, match=f"dtype '{re.escape(dtype)}': unknown: float16"):
        submit(FINETUNE, dtype=dtype, out=tmp_path, root=tmp_path)
