"""Models that came as files, from wherever: the checkpoints of an archive, a folder or a list, as a pool of logits."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kit.archive import state_hash
from kit.errors import InputError
from kit.ledger import FILE_NAME, Ledger
from kit.tools.verify import BROKEN_ZIP, is_folder, open_archive, verify
from local_eval.checkpoints import Checkpoint, digests, find, load_checkpoint
from local_eval.devices import processes_for
from local_eval.engines import run_all
from local_eval.pool import ModelPool, logits_of, on_device
from local_eval.setting import Workspace, reopen


def fill_from_files(
    workspace: Workspace, paths: Sequence[Path], *, devices: Sequence[str] = (), progress: bool = True
) -> ModelPool:
    """The logits of the checkpoints that `local_eval.checkpoints.find` finds: the pool of an unlearned sample. The same
    bytes are the same pool, whatever their files are called. A zip as `kit` writes it is checked as `fill_from_archive`
    does. devices: a process for each entry."""
    if len(paths) == 1 and paths[0].suffix == ".zip" and _is_submission(paths[0]):
        return fill_from_archive(workspace, paths[0], devices=devices, progress=progress)
    checkpoints = find(paths)
    digest = digest_of(digests(checkpoints))
    identity = {"kind": "unlearned", "setting": workspace.name, "checkpoints": digest}
    pool = ModelPool(workspace.folder / f"checkpoints-{digest[:8]}", identity)
    fill(workspace, checkpoints, pool, devices=devices, progress=progress)
    return pool


def fill_from_archive(
    workspace: Workspace, archive: Path, *, devices: Sequence[str] = (), progress: bool = True
) -> ModelPool:
    """Check an archive as `kit` writes it and write down the logits of all its checkpoints. The same bytes are the same
    pool, whatever their file is called. devices: a process for each entry.

    Raises InputError, naming the first fault, where the archive is not one of valid checkpoints of the setting's
    architecture, and where the ledger beside it says that they were made from another original model. Copies of each
    other or of the original are no fault here: the score tells.
    """
    archive = Path(archive)
    known = workspace.original_path.exists()
    like = (workspace.original() if known else workspace.net()).state_dict()
    n_models = _count(archive)
    ledger = _ledger(archive)
    made_from = (ledger.first("start") or {}).get("model") if ledger else None
    if known and made_from is not None and made_from != state_hash(like):
        raise InputError(
            f"{archive}: was made from another original model than that of {workspace.folder} (says {ledger.path}): "
            "score it against the setting whose input tree it was made from"
        )
    for check in verify(archive, n_models, like, is_original=known, progress=progress):
        if not check.ok and check.name != "all different":
            raise InputError(f"{archive}: {check.found}: {check.remedy}")
    digest = _sha256(archive)
    identity = {"kind": "unlearned", "setting": workspace.name, "archive": digest}
    pool = ModelPool(workspace.folder / f"archive-{digest[:8]}", identity)
    checkpoints = find([archive])
    fill(workspace, checkpoints, pool, seconds=_seconds(ledger), made=_made(ledger), devices=devices, progress=progress)
    return pool


def fill(
    workspace: Workspace,
    checkpoints: Sequence[Checkpoint],
    pool: ModelPool,
    *,
    seconds: Mapping[int, float] | None = None,
    made: Mapping[str, Any] | None = None,
    devices: Sequence[str] = (),
    progress: bool = True,
) -> None:
    """Write down what a pool lacks of the logits of these checkpoints, in their order. made: the method and its
    hyper-parameters, where they are known."""
    if todo := pool.missing(len(checkpoints)):
        devices = processes_for(devices, workspace, len(todo))
        where = [Checkpoint(checkpoint.path.resolve(), checkpoint.member) for checkpoint in checkpoints]
        setup = partial(_reader, workspace.folder, where, pool, seconds or {}, made or {})
        run_all(setup, todo, devices, description=f"reading {checkpoints[0].path.name}", progress=progress)


def digest_of(names: Sequence[str]) -> str:
    """What names a sequence of digests."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _is_submission(archive: Path) -> bool:
    """Is a zip to be judged as a submission: does anything in it lie where the competition wants it, or can it not be
    read at all?"""
    try:
        with open_archive(archive) as file:
            return any(name.startswith("kaggle/") for name in file.namelist())
    except BROKEN_ZIP:
        return True


def _count(archive: Path) -> int:
    try:
        with open_archive(archive) as file:
            return sum(not is_folder(info) for info in file.infolist())
    except BROKEN_ZIP as error:
        raise InputError(f"{archive}: is no archive of checkpoints ({error})") from error


def _sha256(path: Path) -> str:
    return digests([Checkpoint(path)])[0]


def _ledger(archive: Path) -> Ledger | None:
    """The ledger beside the archive, where there is one."""
    path = archive.with_name(FILE_NAME)
    return Ledger(path) if path.exists() else None


def _seconds(ledger: Ledger | None) -> dict[int, float]:
    """What each checkpoint took, as the ledger says."""
    lines = ledger.of("checkpoint") if ledger else ()
    return {line.get("index"): s for line in lines if isinstance(s := line.get("seconds"), int | float)}


def _made(ledger: Ledger | None) -> dict[str, Any]:
    """The method of an archive and its hyper-parameters, as the ledger says."""
    start = ledger.first("start") if ledger else None
    return {name: start[name] for name in ("method", "hyper") if name in start} if start else {}


def _reader(
    folder: Path,
    checkpoints: Sequence[Checkpoint],
    pool: ModelPool,
    seconds: Mapping[int, float],
    made: Mapping[str, Any],
    device: str,
) -> Callable[[int], bool]:
    """The job of one process: load checkpoint `index` and write its logits down."""
    workspace = reopen(folder)
    net = workspace.net().to(device)
    evaluated = on_device(workspace.evaluated(), device)

    def read_one(index: int) -> bool:
        checkpoint = checkpoints[index]
        logits = logits_of(load_checkpoint(checkpoint, net), evaluated)
        facts = {"path": str(checkpoint.path), "member": checkpoint.member, **made}
        pool.add(index, logits, seconds.get(index, 0.0), net, **facts)
        return True

    return read_one
