"""What an emission checks: each checkpoint as it is stored, and the archive in the end."""

import io
import zipfile

import pytest
import torch

from kit import checkpoint as checkpoint_module
from kit.archive import archive_faults, pack, serialize
from kit.errors import InputError
from kit.methods import get_method, method_of
from kit.tools.verify import verify
from tests.test_kit_emit import members, run


def test_doing_nothing_makes_an_archive_that_does_not_pass(model, loaders, tmp_path):
    result = run(model, loaders, tmp_path, method=get_method("do_nothing"))
    (fault,) = result.faults
    assert fault.startswith(
        "4 of 4 checkpoints are no new ones, first kaggle/tmp/unlearned_checkpoint_0.pth equals the or"
    )
    assert [check.name for check in verify(result.archive, 4, model.state_dict()) if not check.ok] == ["all different"]


def test_two_checkpoints_alike_are_told(model, loaders, tmp_path):
    def fixed(net, retain, forget, validation):
        net.fc.bias.data.fill_(1.0)

    (fault,) = run(model, loaders, tmp_path, method=method_of(fixed), dtype=torch.float16).faults
    assert "3 of 4" in fault
    assert "unlearned_checkpoint_1.pth equals kaggle/tmp/unlearned_checkpoint_0.pth: each run must draw" in fault


def test_equal_checksums_alone_make_no_twins(model, tmp_path, monkeypatch):
    data = [serialize({"bias": torch.full((2,), float(i))}) for i in range(3)]
    pack(tmp_path / "s.zip", map(io.BytesIO, data))
    found = zipfile.ZipFile(tmp_path / "s.zip").infolist()
    monkeypatch.setattr("kit.archive.zlib.crc32", lambda data: found[0].CRC)  # as the original's
    assert archive_faults(tmp_path / "s.zip", [info.CRC for info in found], serialize({})) == []


@pytest.mark.parametrize("damage", ["a bit", "the end", "a member more", "another order"])
def test_a_finished_archive_is_read_again(damage, model, loaders, tmp_path):
    archive = run(model, loaders, tmp_path, n=3).archive
    data = bytearray(archive.read_bytes())
    if damage == "a bit":
        data[len(data) // 2] ^= 1
    if damage == "the end":
        del data[-100:]
    archive.write_bytes(data)
    if damage == "a member more":
        with zipfile.ZipFile(archive, "a") as file:
            file.writestr("notes.txt", "")
    if damage == "another order":
        whole = members(archive)
        with zipfile.ZipFile(archive, "w") as file:
            for name in reversed(whole):
                file.writestr(name, whole[name])
    (fault,) = run(model, loaders, tmp_path, n=3).faults
    assert "delete it and run again" in fault
    archive.unlink()
    assert run(model, loaders, tmp_path, n=3).faults == []


class Named(torch.Tensor):
    """A tensor of a class that torch.load with weights_only refuses."""


def test_tensors_of_a_class_of_their_own_are_stored_as_plain_ones(model, loaders, tmp_path):
    def unlearning(net, retain, forget, validation):
        norm = next(module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d))
        norm.running_mean = torch.randn_like(norm.running_mean).as_subclass(Named)

    archive = run(model, loaders, tmp_path, n=2, method=method_of(unlearning)).archive
    assert all(check.ok for check in verify(archive, 2, model.state_dict()))


def test_what_cannot_be_read_back_is_told_with_the_first_checkpoint(model, loaders, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"cannot be read back as it was stored \(.*float8"):
        run(model, loaders, tmp_path / "a", dtype=torch.float8_e4m3fn)
    monkeypatch.setattr(checkpoint_module, "serialize", lambda *_: b"no zip")
    with pytest.raises(InputError, match="cannot be read back as it was stored"):
        run(model, loaders, tmp_path / "b")
    assert not list(tmp_path.rglob("*.pth"))


def test_no_damage_to_the_table_of_contents_is_a_traceback(model, tmp_path):
    data = [serialize({"bias": torch.full((2,), float(i))}) for i in range(3)]
    crc32 = pack(archive := tmp_path / "s.zip", map(io.BytesIO, data))
    whole, table = archive.read_bytes(), -(3 * 90 + 22)
    assert archive_faults(archive, crc32, b"") == []
    for bit in range(8 * -table):
        mutant = bytearray(whole)
        mutant[table + bit // 8] ^= 1 << bit % 8
        archive.write_bytes(mutant)
        archive_faults(archive, crc32, b"")  # whatever it says, it says it
