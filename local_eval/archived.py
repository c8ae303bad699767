"""The checkpoints of an archive, from wherever it came, as a pool of logits."""

import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import nn

from kit.archive import read_checkpoints
from kit.competition import MEMBER_NAME
from kit.errors import InputError
from kit.jobs import run_all
from kit.ledger import FILE_NAME, Ledger
from kit.submission import BROKEN_ZIP, largest_checkpoint, open_archive, verify
from local_eval.devices import processes_for
from local_eval.pool import ModelPool, logits_of, on_device
from local_eval.setting import Workspace, reopen


def fill_from_archive(
    workspace: Workspace, archive: Path, *, devices: Sequence[str] = (), progress: bool = True
) -> ModelPool:
    """Check the archive and write down the logits of all its checkpoints. The same bytes are the same pool, whatever
    their file is called. devices: a process for each entry.

    Raises InputError, naming the first fault, where the archive is not one of valid checkpoints of the setting's
    architecture. Copies of each other or of the original are no fault here: the score tells.
    """
    archive = Path(archive)
    original = workspace.original().state_dict()
    n_models = _count(archive)
    for check in verify(archive, n_models, original, progress=progress):
        if not check.ok and check.name != "all different":
            raise InputError(f"{archive}: {check.found}: {check.remedy}")
    digest = _sha256(archive)
    identity = {"kind": "unlearned", "setting": workspace.name, "archive": digest}
    pool = ModelPool(workspace.folder / f"archive-{digest[:8]}", identity)
    if todo := pool.missing(n_models):
        devices = processes_for(devices, workspace, len(todo))
        setup = partial(_reader, workspace.folder, archive.resolve(), pool, _seconds(archive))
        run_all(setup, todo, devices, description=f"reading {archive.name}", progress=progress)
    return pool


def _count(archive: Path) -> int:
    try:
        with open_archive(archive) as file:
            return sum(not info.is_dir() for info in file.infolist())
    except BROKEN_ZIP as error:
        raise InputError(f"{archive}: is no archive of checkpoints ({error})") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _seconds(archive: Path) -> dict[int, float]:
    """What each checkpoint took, from the ledger beside the archive where there is one."""
    ledger = archive.with_name(FILE_NAME)
    lines = Ledger(ledger).of("checkpoint") if ledger.exists() else ()
    return {line.get("index"): s for line in lines if isinstance(s := line.get("seconds"), int | float)}


def checkpoint_of(archive: Path, index: int, net: nn.Module) -> nn.Module:
    """`net` with the weights of a checkpoint, on the device where it lies."""
    with zipfile.ZipFile(archive) as file:
        member = file.getinfo(MEMBER_NAME.format(index=index))
        _, state = next(read_checkpoints(file, [member], largest_checkpoint(net.state_dict())))
    if isinstance(state, Exception):
        raise InputError(f"{archive}: {member.filename} cannot be read ({state})")
    net.load_state_dict({name: tensor.to(net.state_dict()[name].dtype) for name, tensor in state.items()})
    return net


def _reader(
    folder: Path, archive: Path, pool: ModelPool, seconds: Mapping[int, float], device: str
) -> Callable[[int], bool]:
    """The job of one process: load checkpoint `index` and write its logits down."""
    workspace = reopen(folder)
    net = workspace.net().to(device)
    evaluated = on_device(workspace.evaluated(), device)

    def read_one(index: int) -> bool:
        pool.add(index, logits_of(checkpoint_of(archive, index, net), evaluated), seconds.get(index, 0.0))
        return True

    return read_one
