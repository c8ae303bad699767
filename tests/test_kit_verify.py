"""Archives that a submission must not be: each is named by the check that fails."""

import io
import zipfile

import pytest
import torch

from kit.archive import pack, serialize
from kit.competition import MEMBER_NAME
from kit.submission import verify


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

    monkeypatch.setattr("kit.archive.state_hash", broken)
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
