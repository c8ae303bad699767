"""The checkpoints of an archive, from wherever it came, as a pool of logits."""

import hashlib
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

from kit.competition import MEMBER_NAME
from kit.errors import InputError
from kit.ledger import FILE_NAME, Ledger
from kit.submission import largest_checkpoint, open_archive, read_checkpoints, verify
from local_eval.engine import run_jobs
from local_eval.models import build
from local_eval.pool import ModelPool, logits_of
from local_eval.setting import Workspace, reopen


def fill_from_archive(
    workspace: Workspace, archive: Path, *, workers: int | None = None, progress: bool = True
) -> ModelPool:
    """Check the archive and write down the logits of all its checkpoints.

    Raises InputError, naming the first fault, where the archive is not one of valid checkpoints of the setting's
    architecture. Copies of each other or of the original are no fault here: the score tells.
    """
    archive = Path(archive)
    original = workspace.original().state_dict()
    n_models = _count(archive)
    for check in verify(archive, n_models, original, progress=progress):
        if not check.ok and check.name != "all different":
            raise InputError(f"{archive}: {check.found}: {check.remedy}")
    with archive.open("rb") as file:
        digest = _sha256(file)
    identity = {"kind": "unlearned", "setting": workspace.name, "method": archive.stem, "archive": digest}
    pool = ModelPool(workspace.folder / f"archive-{digest[:8]}", identity)
    setup = partial(_reader, workspace.folder, archive.resolve(), pool.folder)
    run_jobs(setup, pool.missing(n_models), workers=workers, description=f"reading {archive.name}", progress=progress)
    return pool


def _count(archive: Path) -> int:
    try:
        with open_archive(archive) as file:
            return len(file.infolist())
    except Exception as error:  # zipfile raises many kinds for a broken file
        raise InputError(f"{archive}: is no archive of checkpoints ({error})") from error


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _reader(folder: Path, archive: Path, pool_folder: Path) -> Callable[[int], None]:
    """The job of one process: load checkpoint `index` and write its logits down."""
    workspace = reopen(folder)
    net = build(workspace.setting.architecture, workspace.splits.n_classes)
    largest = largest_checkpoint(net.state_dict())
    evaluated = workspace.evaluated()
    pool = ModelPool.open(pool_folder)
    ledger = archive.with_name(FILE_NAME)
    seconds = {line["index"]: line["seconds"] for line in Ledger(ledger).of("checkpoint")} if ledger.exists() else {}
    file = zipfile.ZipFile(archive)

    def read_one(index: int) -> None:
        member = file.getinfo(MEMBER_NAME.format(index=index))
        _, state = next(read_checkpoints(file, [member], largest))
        if isinstance(state, Exception):
            raise InputError(f"{archive}: {member.filename} cannot be read ({state})")
        net.load_state_dict({name: tensor.to(net.state_dict()[name].dtype) for name, tensor in state.items()})
        pool.add(index, logits_of(net, evaluated), seconds.get(index, 0.0))

    return read_one
