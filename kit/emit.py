"""The emission: N unlearned checkpoints, each from the original weights with its own seed, in one archive in time."""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from kit import __version__
from kit.budget import TimeBudget, format_duration
from kit.checkpoint import Made, make_one, measure_cost, unlearn_once
from kit.competition import ARCHIVE_NAME, N_CHECKPOINTS, Loaders
from kit.errors import InputError
from kit.ledger import FILE_NAME, Ledger
from kit.making import Crew, Lost, Maker, one_thread
from kit.methods import Method, method_of
from kit.pace import Pace
from kit.preflight import archive_bytes, check_output
from kit.submission import Archive, Check, Entry, state_hash, verify
from kit.training import device_of

__all__ = ["Emission", "emit", "make_one", "measure_cost", "unlearn_once"]


@dataclass(frozen=True)
class Emission:
    """What a run left behind: the archive, the checks it passed, seconds in all and per checkpoint.

    stood_in: how many checkpoints the faster recipe made, and why the first of them.
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
        return line + (f", {self.stood_in} of them by short_fine_tuning ({self.why})" if self.stood_in else "")


def emit(
    unlearn: Method | Callable[..., Any],
    model: nn.Module,
    loaders: Loaders,
    *,
    out: Path,
    n_checkpoints: int = N_CHECKPOINTS,
    budget: TimeBudget | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    fill: bool = False,
    crew: Crew | None = None,
    progress: bool = True,
) -> Emission:
    """Write `out/submission.zip` with `n_checkpoints` unlearned checkpoints inside the time budget.

    unlearn: a Method, or any function of the four arguments. model: the original, on the device to work on; it is
    left as it came. dtype: type of the stored floating-point tensors, None for the model's own. fill: take as many
    steps as fit where more time is left than the method wants. crew: who makes the checkpoints, several at once and in
    any order; by default this process, one after the other, on a CPU with one thread.

    A function that takes no plan is projected after its first checkpoint, and refused where it does not fit. Where it
    slows down later, or fails on one checkpoint three times, `short_fine_tuning` makes what it cannot: the ledger
    and `Emission` say which and why.

    An interrupted run is continued by the same call: `out/ledger.jsonl` holds its plan and what is done. Raises
    InputError where the limit cannot hold the checkpoints, where `out` holds another run, and where the method fails.
    """
    if n_checkpoints < 1:
        raise InputError(f"n_checkpoints is {n_checkpoints}: a submission needs at least 1")
    method = unlearn if isinstance(unlearn, Method) else method_of(unlearn)
    budget = budget or TimeBudget()
    out = check_output(out, archive_bytes(model, n_checkpoints, dtype))
    ledger = Ledger(out / FILE_NAME)
    _open_run(
        ledger,
        version=__version__,
        **method.identity,
        model=state_hash(model.state_dict()),
        n_examples=[len(loader.dataset) for loader in loaders],
        n_checkpoints=n_checkpoints,
        seed=seed,
        dtype=str(dtype),
        fill=fill,
        device=device_of(model).type,
    )
    archive_path = out / ARCHIVE_NAME
    with one_thread():
        if ledger.first("end") is None or not archive_path.exists():
            maker = Maker(method, model, loaders, seed, dtype, fill)
            _write_checkpoints(maker, crew or maker, ledger, archive_path, n_checkpoints, budget, fill, progress)
        checks = verify(archive_path, n_checkpoints, model.state_dict(), progress=progress)
    plans, made = list(ledger.of("plan")), list(ledger.of("checkpoint"))
    reasons = [line["why"] for line in made if "why" in line]
    return Emission(
        archive=archive_path,
        checks=checks,
        seconds=budget.elapsed_s(),
        checkpoint_s=[line["seconds"] for line in made],
        steps=plans[-1]["steps"] if plans else None,
        stood_in=len(reasons),
        why=reasons[0] if reasons else "",
    )


def _open_run(ledger: Ledger, **identity: Any) -> None:
    """Begin the ledger of a run, or check that it is the ledger of this run."""
    start = ledger.first("start")
    if start is None:
        ledger.append("start", **identity, time=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        return
    if changed := [name for name, value in identity.items() if start.get(name) != value]:
        name = changed[0]
        raise InputError(
            f"{ledger.path}: belongs to another run ({name} {start.get(name)!r}, now {identity[name]!r}): "
            "choose another output folder or delete this one"
        )


def _write_checkpoints(
    maker: Maker,
    crew: Crew,
    ledger: Ledger,
    archive_path: Path,
    n_checkpoints: int,
    budget: TimeBudget,
    fill: bool,
    progress: bool,
) -> None:
    """Make what the ledger lacks. A checkpoint is written while the next one is computed."""
    names = ("index", "offset", "size", "crc32")
    entries = [Entry(**{name: line[name] for name in names}) for line in ledger.of("checkpoint")]
    if entries and not archive_path.with_name(archive_path.name + ".partial").exists():
        if len(entries) == n_checkpoints and archive_path.exists():  # killed between its naming and the last line
            ledger.append("end", seconds=round(budget.elapsed_s(), 3))
            return
        raise InputError(f"{archive_path}.partial: is missing although the ledger names it: delete {ledger.path}")
    archive = Archive(archive_path, entries)
    todo = sorted(set(range(n_checkpoints)) - {entry.index for entry in entries})
    pace = Pace(maker, crew, ledger, budget, todo, n_checkpoints, fill)
    bar = {"desc": maker.method.name, "total": n_checkpoints, "disable": not progress}

    def keep(made: Made) -> None:
        entry = archive.add(made.index, made.data)
        facts = {"why": made.why, "recipe": "short_fine_tuning"} if made.why else {}
        seconds = round(made.seconds, 6)
        ledger.append("checkpoint", seed=maker.seed, attempt=made.attempt, seconds=seconds, **entry.__dict__, **facts)

    try:
        pace.prepare()
        with ThreadPoolExecutor(1) as writer, tqdm(initial=len(entries), **bar) as shown:
            writing: Future[None] | None = None
            for made in crew.run(pace.next_task):
                if isinstance(made, Lost):
                    pace.lost(made)
                    continue
                if writing:
                    writing.result()  # one at a time: what follows a failed write must not be written
                writing = writer.submit(keep, made)
                pace.after(made)
                if budget.limit_s != math.inf:
                    used = budget.elapsed_s() / budget.limit_s
                    shown.set_postfix_str(f"{used:.0%} of {format_duration(budget.limit_s)}", refresh=False)
                shown.update()
            if writing:
                writing.result()
        archive.close()
        ledger.append("end", seconds=round(budget.elapsed_s(), 3))
    except OSError as error:
        archive.suspend()
        raise InputError(
            f"{archive_path}: cannot be written any more ({error.strerror or error}): {ledger.path.name} keeps what is "
            "finished; make room or bring the folder back, and the same command continues"
        ) from error
    except BaseException:
        archive.suspend()
        raise
