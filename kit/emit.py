"""The emission: N unlearned checkpoints, each from the original weights with its own seed, in one archive in time.

Files are the state: a finished checkpoint is a file under its final name, and a run continues with what is missing. The
archive is packed in the order of the numbers, so that its bytes do not depend on how many processes worked.
"""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from kit.archive import archive_faults, pack, serialize, state_hash
from kit.budget import TimeBudget, format_duration
from kit.checkpoint import STAND_IN, Maker, Outcome, checkpoint_path, write_checkpoint
from kit.competition import ARCHIVE_NAME, N_CHECKPOINTS, Loaders, data_hash
from kit.device import device_of, reproducible
from kit.errors import InputError
from kit.jobs import run_jobs
from kit.ledger import FILE_NAME, Ledger, check_folder
from kit.methods import Method, method_of
from kit.preflight import check_count, check_disk, checkpoint_bytes
from kit.schedule import Run, Scheduler

Problem = Callable[[str], tuple[nn.Module, Loaders]]


@dataclass(frozen=True)
class Emission:
    """What a run left behind: the archive, what is wrong with it, seconds in all and per checkpoint.

    faults: none where it is fit for the upload; steps: of the last plan; reasons: why the stand-in made a checkpoint,
    for each that it made.
    """

    archive: Path
    faults: list[str]
    seconds: float
    checkpoint_s: list[float]
    steps: int | None
    reasons: list[str]

    def summary(self, limit_s: float = math.inf) -> str:
        """The last line of a run."""
        each_s, n = sum(self.checkpoint_s) / max(1, len(self.checkpoint_s)), len(self.reasons)
        limit = f" of {format_duration(limit_s)}" if limit_s != math.inf else ""
        steps = f", {self.steps} step{'s' * (self.steps != 1)} each" if self.steps is not None else ""
        line = f"{len(self.checkpoint_s)} checkpoints in {format_duration(self.seconds)}{limit}"
        line += f" ({format_duration(each_s)} each{steps})"
        return line + (f", {n} of them by {STAND_IN.name} ({self.reasons[0]})" if n else "")


def emit(
    unlearn: Method | Callable[..., Any],
    model: nn.Module,
    loaders: Loaders,
    *,
    out: Path,
    work: Path | None = None,
    n_checkpoints: int = N_CHECKPOINTS,
    budget: TimeBudget | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    fill: bool = False,
    devices: Sequence[str] = (),
    problem: Problem | None = None,
    progress: bool = True,
    on_checkpoint: Callable[[int, float], None] | None = None,
) -> Emission:
    """Write `out/submission.zip` with `n_checkpoints` unlearned checkpoints inside the time budget.

    unlearn: a Method, or any function of the four arguments. model: the original, on the device to work on; it is
    left as it came. work: the folder of finished checkpoints until they are packed (`out/checkpoints`). dtype: type of
    the stored floating-point tensors, None for the model's own. fill: take as many steps as fit where more time is left
    than the method wants. devices: two or more for a process each, which `problem(device)` gives model and loaders.
    on_checkpoint: called with the number and the seconds of each checkpoint that is made, in this process.

    A function that takes no plan is projected after its first checkpoint, and refused where it does not fit. Where it
    slows down later, or fails on one checkpoint three times, `short_fine_tuning` makes what it cannot: the ledger
    and `Emission` say which and why.

    An interrupted run is continued by the same call. Raises InputError where the limit cannot hold the checkpoints,
    where `out` holds another run, and where the method fails.

    >>> import tempfile
    >>> from kit.competition import ExampleDataset, make_loaders
    >>> data = [ExampleDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), [0, 1, 0, 1]) for _ in range(3)]
    >>> net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    >>> def noise(net, retain_loader, forget_loader, val_loader):
    ...     with torch.no_grad():
    ...         net[2].bias += 0.1 * torch.randn(2)
    >>> found = emit(noise, net, make_loaders(*data), out=tempfile.mkdtemp(), n_checkpoints=2, progress=False)
    >>> found.archive.name, found.faults
    ('submission.zip', [])
    """
    check_count(n_checkpoints)
    method = unlearn if isinstance(unlearn, Method) else method_of(unlearn)
    out, budget = check_folder(out), budget or TimeBudget()
    devices = list(devices) or [str(device_of(model))]
    identity = {
        **method.identity,
        "model": state_hash(model.state_dict()),
        "data": [data_hash(loader.dataset) for loader in loaders],
        "batch_size": [loader.batch_size for loader in loaders],
        "n_checkpoints": n_checkpoints,
        "seed": seed,
        "dtype": str(dtype),
        "fill": fill,
        "device": torch.device(devices[0]).type,
    }
    ledger, archive = _open_ledger(out / FILE_NAME, identity), out / ARCHIVE_NAME
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=int).encode()).hexdigest()
    with reproducible(devices[0]):
        if not (ledger.first("end") and archive.exists()):
            folder = check_folder(Path(work or out / "checkpoints") / f"run-{digest[:12]}")
            files = [checkpoint_path(folder, index) for index in range(n_checkpoints)]
            todo = [index for index, file in enumerate(files) if not file.exists()]
            each = checkpoint_bytes(model, dtype)
            check_disk({folder: len(todo) * each, out: n_checkpoints * each})
            keep = partial(write_checkpoint, folder, ledger.path, dtype)
            given = problem if len(devices) > 1 else lambda device: (model, loaders)
            devices = devices[: max(1, len(todo))]
            run = Run(method, ledger, budget, n_checkpoints, len(devices), len(loaders.retain), fill)
            setup = partial(maker_on, given, method, keep, seed, fill)
            make(Scheduler(run, todo), setup, devices, progress, on_checkpoint)
            _pack(archive, files, ledger.path, progress)
            ledger.append("end", seconds=round(budget.elapsed_s(), 3))
            shutil.rmtree(folder, ignore_errors=True)
    made = [line for _, line in sorted(_last_lines(ledger.path).items())]
    return Emission(
        archive,
        archive_faults(archive, [line["crc32"] for line in made], serialize(model.state_dict(), dtype)),
        seconds=budget.elapsed_s(),
        checkpoint_s=[line["seconds"] for line in made],
        steps=next((line["steps"] for line in reversed(list(ledger.of("plan")))), None),
        reasons=[line["why"] for line in made if "why" in line],
    )


def _open_ledger(path: Path, identity: dict[str, Any]) -> Ledger:
    """Begin the ledger of a run, or check that it is the ledger of this run."""
    ledger = Ledger(path)
    start = ledger.first("start")
    if start is None:
        ledger.append("start", **identity, time=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    elif changed := [name for name, value in identity.items() if start.get(name) != value]:
        name = changed[0]
        raise InputError(
            f"{path}: belongs to another run ({name} {start.get(name)!r}, now {identity[name]!r}): "
            "choose another output folder or delete this one"
        )
    return ledger


def maker_on(problem: Problem, method: Method, keep: Callable[..., None], seed: int, fill: bool, device: str) -> Maker:
    """The maker of a process, with the model and the loaders that `problem(device)` gives."""
    return Maker(method, keep, *problem(device), seed=seed, fill=fill)


def make(
    schedule: Scheduler,
    setup: Callable[[str], Maker],
    devices: Sequence[str],
    progress: bool = True,
    on_checkpoint: Callable[[int, float], None] | None = None,
) -> None:
    """Do what a schedule asks for."""
    run = schedule.run
    bar = {"desc": run.method.name, "total": run.n_all, "initial": schedule.n_made, "disable": not progress}
    with tqdm(**bar) as shown:
        for job, result in run_jobs(setup, schedule.next_job, devices):
            schedule.note(job, result)
            if on_checkpoint and isinstance(result, Outcome) and not result.why:
                on_checkpoint(job.number, result.seconds)
            if run.limited:
                used = run.budget.elapsed_s() / run.budget.limit_s
                shown.set_postfix_str(f"{used:.0%} of {format_duration(run.budget.limit_s)}", refresh=False)
            shown.update(schedule.n_made - shown.n)


def _last_lines(ledger: Path) -> dict[int, dict[str, Any]]:
    """What the ledger says of each checkpoint; processes may have written a line more than once."""
    return {line["index"]: line for line in Ledger(ledger).of("checkpoint")}


def _pack(archive: Path, files: Sequence[Path], ledger: Path, progress: bool) -> None:
    """The archive of the checkpoints in the order of their numbers, each as it was written."""
    found = pack(archive, (file.open("rb") for file in tqdm(files, "packing", disable=not progress)))
    lines = _last_lines(ledger)
    for index, crc32 in enumerate(found):
        if crc32 != lines.get(index, {}).get("crc32"):
            archive.unlink()
            raise InputError(f"{files[index]}: is damaged: delete it, and the same command makes it again")
