"""Archives that a submission must not be: each is named by the check that fails."""

import io
import zipfile

import numpy as np
import pytest
import torch

from kit.archive import pack, serialize
from kit.competition import MEMBER_NAME
from kit.tools.verify import verify


def states(model, n=3):
    for index in range(n):
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        state["fc.bias"] += index + 1
        yield index, state


def write(path, contents):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents:
            archive.writestr(name, data)
    return path


@pytest.fixture
def good(model):
    return {MEMBER_NAME.format(index=index): serialize(state) for index, state in states(model)}


def failed(path, model, n=3):
    checks = verify(path, n, model.state_dict())
    assert all("\n" not in check.found for check in checks)
    assert all(check.remedy for check in checks if not check.ok)
    return {check.name: check.found for check in checks if not check.ok}


def test_a_good_archive_passes_however_it_was_zipped(model, good, tmp_path):
    assert failed(write(tmp_path / "a.zip", good.items()), model) == {}
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in reversed(good.items()):
            archive.writestr(name, data)
    assert failed(tmp_path / "b.zip", model) == {}


def test_no_file_and_no_zip(model, tmp_path):
    assert "does not exist" in failed(tmp_path / "x.zip", model)["archive"]
    assert "is a folder" in failed(tmp_path, model)["archive"]
    (tmp_path / "x.zip").write_bytes(b"this is no zip")
    assert "no complete zip" in failed(tmp_path / "x.zip", model)["archive"]
    (tmp_path / "y.zip").write_bytes(b"")
    assert "no complete zip" in failed(tmp_path / "y.zip", model)["archive"]


def test_a_truncated_archive(model, good, tmp_path):
    whole = write(tmp_path / "a.zip", good.items()).read_bytes()
    for length in (10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "b.zip").write_bytes(whole[:length])
        assert "archive" in failed(tmp_path / "b.zip", model)


def test_an_archive_appears_when_it_is_complete(model, good, tmp_path):
    def contents():
        yield from list(good.values())[:2]
        assert not (tmp_path / "s.zip").exists()
        assert "archive" in failed(tmp_path / "s.zip.partial", model)
        yield list(good.values())[2]

    pack(tmp_path / "s.zip", map(io.BytesIO, contents()))
    assert failed(tmp_path / "s.zip", model) == {}
    assert not (tmp_path / "s.zip.partial").exists()


def test_what_is_compared_with_is_named(model, good, tmp_path):
    pack(path := tmp_path / "s.zip", map(io.BytesIO, good.values()))
    assert verify(path, 3, model.state_dict())[-1].found == "3 different checkpoints, none the original"
    assert verify(path, 3, model.state_dict(), is_original=False)[-1].found == "3 different checkpoints"
    copied = [*list(good.values())[:2], serialize(model.state_dict())]
    pack(copies := tmp_path / "t.zip", map(io.BytesIO, copied))
    assert "equals the original" in failed(copies, model)["all different"]
    assert all(check.ok for check in verify(copies, 3, model.state_dict(), is_original=False))


def test_a_fault_of_our_own_is_no_fault_of_the_archive(model, good, tmp_path, monkeypatch):
    pack(path := tmp_path / "s.zip", map(io.BytesIO, good.values()))

    def broken(*_):
        raise RuntimeError("Expected all tensors to be on the same device")

    monkeypatch.setattr("kit.tools.verify.state_hash", broken)
    with pytest.raises(RuntimeError, match="same device"):
        verify(path, 3, model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:-1], "2 members instead of 3, 1 missing such as kaggle/tmp/unlearned_checkpoint_2.pth"),
        (lambda c: [*c, ("kaggle/tmp/unlearned_checkpoint_3.pth", c[0][1])], "4 members instead of 3"),
        (lambda c: [*c, ("kaggle/tmp/notes.txt", b"")], "1 with another name such as 'kaggle/tmp/notes.txt'"),
        (lambda c: [(name[7:], data) for name, data in c], "3 with another name such as 'tmp/unlearned_checkpoint_0"),
        (lambda c: [*c[:2], ("kaggle/tmp/unlearned_checkpoint_02.pth", c[2][1])], "1 with another name"),
        (lambda c: [("../../etc/x", b""), *c], "'../../etc/x'"),
        (lambda c: [("kaggle/tmp/a\n\x1b[31m.pth", b""), *c], r"\\x1b"),
        (lambda c: [], "0 members instead of 3"),
    ],
)
def test_wrong_members(model, good, tmp_path, change, message):
    found = failed(write(tmp_path / "a.zip", change(list(good.items()))), model)["members"]
    assert message.replace("\\\\", "\\") in found


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_twice(model, good, tmp_path):
    contents = list(good.items())
    assert "1 twice" in failed(write(tmp_path / "a.zip", [*contents, contents[0]]), model)["members"]


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code in a checkpoint ran')",))


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def faulty_states(state):
    first = next(iter(state))
    floats = {name: t for name, t in state.items() if t.is_floating_point()}
    yield "does not load", Evil()
    yield "is no dict of tensors", [1]
    yield "entries are missing", dict(list(state.items())[1:])
    yield "entries are unknown, first 'module.x'", {**state, "module.x": torch.zeros(1)}
    yield "has shape (1,)", {**state, first: torch.zeros(1)}
    yield "has NaN or infinite values", {**state, first: torch.full_like(state[first], float("inf"))}
    yield "has NaN or infinite values", {**state, first: torch.full_like(state[first], float("nan")).half()}
    yield "expected torch.float32", {**state, first: torch.zeros(state[first].shape, dtype=torch.int8)}
    yield "bytes where at most", {**state, first: torch.zeros(sum(t.numel() for t in floats.values()) * 4)}


def test_wrong_checkpoints(model, good, tmp_path):
    names = list(good)
    for message, content in faulty_states(model.state_dict()):
        path = write(tmp_path / "a.zip", [*list(good.items())[:2], (names[2], saved(content))])
        found = failed(path, model)["tensors"]
        assert message in found
        assert names[2] in found
    path = write(tmp_path / "a.zip", [*list(good.items())[:2], (names[2], b"garbage")])
    assert "does not load" in failed(path, model)["tensors"]


def folder_entries(path, contents):
    """An archive as `zip -r` and `shutil.make_archive(root_dir="/")` make it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("kaggle/", "kaggle/tmp/"):
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o40755 << 16) | 0x10
            archive.writestr(info, b"")
        for name, data in contents:
            archive.writestr(name, data)
    return path


def test_the_entry_of_a_folder_is_no_member(model, good, tmp_path):
    checks = verify(folder_entries(tmp_path / "a.zip", good.items()), 3, model.state_dict())
    assert all(check.ok for check in checks), checks
    assert "2 entries of folders such as kaggle/" in checks[1].found
    short = folder_entries(tmp_path / "b.zip", list(good.items())[:2])
    assert failed(short, model)["members"].startswith("2 members instead of 3, 1 missing")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:  # a link with a folder's name is none
        link = zipfile.ZipInfo("kaggle/tmp/")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc")
        for name, data in good.items():
            archive.writestr(name, data)
    assert "4 members instead of 3" in failed(tmp_path / "c.zip", model)["members"]


@pytest.mark.parametrize("folder", ["", "tmp/", "working/kaggle/tmp/"])
def test_names_in_another_folder_are_told_with_the_line_that_mends_them(model, good, tmp_path, folder):
    contents = [(folder + name.rpartition("/")[2], data) for name, data in good.items()]
    names = verify(write(tmp_path / "a.zip", contents), 3, model.state_dict())[1]
    assert not names.ok
    assert names.remedy.endswith("nothing else: zip /kaggle/working/submission.zip /kaggle/tmp/*.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_whole_state_dict_in_another_type_loads_as_kaggle_loads_it(model, tmp_path, dtype):
    contents = []
    for index, state in states(model):
        whole = {name: tensor.to(dtype) for name, tensor in state.items()}
        assert any(whole[name].is_floating_point() > state[name].is_floating_point() for name in state)
        contents.append((MEMBER_NAME.format(index=index), saved(whole)))
    assert failed(write(tmp_path / "a.zip", contents), model) == {}
    counter = next(name for name in whole if not model.state_dict()[name].is_floating_point())
    whole[counter] = whole[counter] + float("inf")
    contents[-1] = (contents[-1][0], saved(whole))
    assert f"{counter} " in failed(write(tmp_path / "b.zip", contents), model)["tensors"]


def with_numpy_scalar(state, numpy_1):
    """A file with a numpy scalar in it, by the name that numpy 1 or 2 gives its constructor."""
    data, renamed = saved({**state, "accuracy": np.float32(0.9)}), io.BytesIO()
    ours, wanted = (b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")[:: -1 if not numpy_1 else 1]
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(renamed, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, content.replace(ours, wanted))
            named = content.replace(ours, wanted) if info.filename.endswith(".pkl") else b""
            assert not named or wanted in named
    return renamed.getvalue()


def foreign_states(state):
    variance = next(name for name in state if name.endswith("running_var"))
    half = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    yield saved({**half, variance: (0 * half[variance].float() + 70_000).half()}), [variance, "65,504", "in float32"]
    for word in ("model_state_dict", "state_dict", "net"):
        yield saved({word: state, "epoch": 3}), [f"wrapped in {{{word!r}: ...}}", "save what is under that key"]
    yield saved({f"module.{name}": t for name, t in state.items()}), ["begin with 'module.'", "net.module.state_dict()"]
    compiled = {f"_orig_mod.{name}": t for name, t in state.items()}
    yield saved(compiled), ["begin with '_orig_mod.', first '_orig_mod.", "before it was compiled"]
    yield (
        with_numpy_scalar(state, True),
        ["does not load", "numpy.core.multiarray.scalar", "state_dict() alone"],
    )
    yield with_numpy_scalar(state, False), ["does not load", "numpy._core.multiarray.scalar", "alone"]


def test_archives_of_other_makers_are_told_with_member_tensor_and_remedy(model, good, tmp_path):
    names = list(good)
    for data, texts in foreign_states(model.state_dict()):
        found = failed(write(tmp_path / "a.zip", [*list(good.items())[:2], (names[2], data)]), model)["tensors"]
        assert found.startswith(f"{names[2]}: ")
        assert all(text in found for text in texts), found


def test_checkpoints_that_equal_each_other_or_the_original(model, good, tmp_path):
    names, data = list(good), list(good.values())
    same = write(tmp_path / "a.zip", zip(names, [data[0], data[1], data[0]], strict=True))
    assert "unlearned_checkpoint_2.pth equals kaggle/tmp/unlearned_checkpoint_0" in failed(same, model)["all different"]
    original = write(
        tmp_path / "b.zip", zip(names, [data[0], serialize(model.state_dict(), torch.float16), data[2]], strict=True)
    )
    assert "unlearned_checkpoint_1.pth equals the original" in failed(original, model)["all different"]


def test_what_float16_cannot_hold_stays_as_it_is(model, tmp_path):
    """A batch normalisation that sees raw pixels has variances beyond 65504."""
    contents = {}
    for index, state in states(model):
        name = next(name for name in state if name.endswith("running_var"))
        state[name][0] = 1e5
        contents[MEMBER_NAME.format(index=index)] = data = serialize(state, torch.float16)
        stored = torch.load(io.BytesIO(data), weights_only=True)
        assert torch.equal(stored[name], state[name])
        assert stored["fc.bias"].dtype == torch.float16
    checks = verify(write(tmp_path / "submission.zip", contents.items()), 3, model.state_dict())
    assert all(check.ok for check in checks), checks
    assert "float16 and float32" in checks[2].found
