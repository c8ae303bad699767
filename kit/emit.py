"""The emission: N unlearned checkpoints, each from the original weights with its own seed, in one archive in time.

Files are the state: a finished checkpoint is a file under its final name, and a run continues with what is missing. The
archive is packed in the order of the numbers, so that its bytes do not depend on how many processes worked.
"""

import hashlib
import json
import math
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from kit.budget import TimeBudget, format_duration
from kit.checkpoint import STAND_IN, Maker, checkpoint_path
from kit.competition import ARCHIVE_NAME, N_CHECKPOINTS, Loaders, data_hash
from kit.device import device_of, one_thread
from kit.errors import InputError
from kit.jobs import PATIENCE_S, run_jobs
from kit.ledger import FILE_NAME, Ledger
from kit.methods import Method, method_of
from kit.preflight import check_disk, check_folder, checkpoint_bytes
from kit.schedule import Run, Schedule
from kit.submission import Check, pack, serialize, state_hash, verify

Problem = Callable[[str], tuple[nn.Module, Loaders]]


@dataclass(frozen=True)
class Emission:
    """What a run left behind: the archive, the checks it passed, seconds in all and per checkpoint.

    steps: of the last plan; stood_in: how many checkpoints the stand-in made, and why the first of them.
    """

    archive: Path
    checks: list[Check]
    seconds: float
    checkpoint_s: list[float]
    steps: int | None
    stood_in: int = 0
    why: str = ""

    def summary(self, limit_s: float = math.inf) -> str:
        """The last line of a run."""
        n_checkpoints, mean_s = len(self.checkpoint_s), sum(self.checkpoint_s) / max(1, len(self.checkpoint_s))
        steps = f", {self.steps} steps each" if self.steps is not None else ""
        line = f"{n_checkpoints} checkpoints in {format_duration(self.seconds)}"
        line += f" of {format_duration(limit_s)}" if limit_s != math.inf else ""
        line += f" ({format_duration(mean_s)} each{steps})"
        return line + (f", {self.stood_in} of them by {STAND_IN.name} ({self.why})" if self.stood_in else "")


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
    patience_s: float = PATIENCE_S,
    progress: bool = True,
) -> Emission:
    """Write `out/submission.zip` with `n_checkpoints` unlearned checkpoints inside the time budget.

    unlearn: a Method, or any function of the four arguments. model: the original, on the device to work on; it is
    left as it came. work: the folder of finished checkpoints until they are packed (`out/checkpoints`). dtype: type of
    the stored floating-point tensors, None for the model's own. fill: take as many steps as fit where more time is left
    than the method wants. devices: two or more for a process each, which `problem(device)` gives model and loaders.

    A function that takes no plan is projected after its first checkpoint, and refused where it does not fit. Where it
    slows down later, or fails on one checkpoint three times, `short_fine_tuning` makes what it cannot: the ledger
    and `Emission` say which and why.

    An interrupted run is continued by the same call. Raises InputError where the limit cannot hold the checkpoints,
    where `out` holds another run, and where the method fails.
    """
    if n_checkpoints < 1:
        raise InputError(f"n_checkpoints is {n_checkpoints}: a submission needs at least 1")
    method = unlearn if isinstance(unlearn, Method) else method_of(unlearn)
    budget = budget or TimeBudget()
    identity = {
        **method.identity,
        "model": state_hash(model.state_dict()),
        "data": [data_hash(loader.dataset) for loader in loaders],
        "batch_size": [loader.batch_size for loader in loaders],
        "n_checkpoints": n_checkpoints,
        "seed": seed,
        "dtype": str(dtype),
        "fill": fill,
        "device": torch.device(devices[0] if devices else device_of(model)).type,
    }
    ledger = _open_ledger(check_folder(out) / FILE_NAME, identity)
    archive = Path(out) / ARCHIVE_NAME
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = check_folder(Path(work or Path(out) / "checkpoints") / f"run-{digest[:12]}")
    with one_thread():
        if not (ledger.first("end") and archive.exists()):
            files = [checkpoint_path(folder, index) for index in range(n_checkpoints)]
            todo = [index for index, file in enumerate(files) if not file.exists()]
            each = checkpoint_bytes(model, dtype)
            check_disk({folder: len(todo) * each, Path(out): n_checkpoints * each})
            maker = Maker(method, model, loaders, folder, ledger.path, seed, dtype, fill)
            setup = partial(_maker_on, maker.told(), problem) if len(devices) > 1 else lambda device: maker
            close_s = _seconds_to_close(maker, Path(out)) * n_checkpoints if budget.limit_s != math.inf else 0.0
            used = list(devices)[: max(1, len(todo))] or [str(device_of(model))]
            run = Run(method, ledger, budget, n_checkpoints, len(used), len(loaders.retain), close_s, fill)
            _make(Schedule(run, todo), setup, used, patience_s, progress)
            pack(archive, tqdm(_contents(files, ledger.path), "packing", n_checkpoints, disable=not progress))
            ledger.append("end", seconds=round(budget.elapsed_s(), 3))
        shutil.rmtree(folder, ignore_errors=True)
        checks = verify(archive, n_checkpoints, model.state_dict(), progress=progress)
    lines = _last_lines(ledger.path)
    made = [lines[index] for index in range(n_checkpoints) if index in lines]
    plans = list(ledger.of("plan"))
    reasons = [line["why"] for line in made if "why" in line]
    return Emission(
        archive=archive,
        checks=checks,
        seconds=budget.elapsed_s(),
        checkpoint_s=[line["seconds"] for line in made],
        steps=plans[-1]["steps"] if plans else None,
        stood_in=len(reasons),
        why=reasons[0] if reasons else "",
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


def _maker_on(told: dict[str, Any], problem: Problem, device: str) -> Maker:
    """The maker of a process of its own."""
    model, loaders = problem(device)
    return Maker(model=model, loaders=loaders, **told)


def _seconds_to_close(maker: Maker, out: Path) -> float:
    """Seconds that one checkpoint takes to be packed and checked, by doing so; the better of two turns."""
    state, seconds = maker.model.state_dict(), []
    data = serialize(state, maker.dtype)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        for _ in range(2):
            start = time.perf_counter()
            (Path(folder) / "data").write_bytes(data)
            verify(pack(Path(folder) / "one.zip", [(Path(folder) / "data").read_bytes()]), 1, state)
            seconds.append(time.perf_counter() - start)
    return min(seconds)


def _make(schedule: Schedule, setup: Any, devices: Sequence[str], patience_s: float, progress: bool) -> None:
    """Make what is missing."""
    run = schedule.run
    bar = {"desc": run.method.name, "total": run.n_all, "initial": schedule.n_made, "disable": not progress}
    setup_s = 0.5 * run.budget.remaining_s()
    with tqdm(**bar) as shown:
        for job, result in run_jobs(setup, schedule.next_job, devices, patience_s=patience_s, setup_s=setup_s):
            schedule.note(job, result)
            if run.limited:
                used = run.budget.elapsed_s() / run.budget.limit_s
                shown.set_postfix_str(f"{used:.0%} of {format_duration(run.budget.limit_s)}", refresh=False)
            shown.update(schedule.n_made - shown.n)


def _last_lines(ledger: Path) -> dict[int, dict[str, Any]]:
    """What the ledger says of each checkpoint; processes may have written a line more than once."""
    return {line["index"]: line for line in Ledger(ledger).of("checkpoint")}


def _contents(files: Sequence[Path], ledger: Path) -> Iterator[bytes]:
    """The checkpoints in the order of their numbers, each as it was written."""
    lines = _last_lines(ledger)
    for index, file in enumerate(files):
        data = file.read_bytes()
        if zlib.crc32(data) != lines.get(index, {}).get("crc32"):
            raise InputError(f"{file}: is damaged: delete it, and the same command makes it again")
        yield data
