"""A dry run: a notebook or script executed as if on Kaggle, what Kaggle would have said of it, and its score."""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kit.archive import pack
from kit.competition import MEMBER_NAME, N_CHECKPOINTS
from kit.device import choose_device
from kit.errors import InputError
from kit.ledger import FILE_NAME, Ledger
from kit.plan import StepCost
from kit.tools.verify import Check, largest_checkpoint, verdict_lines, verify
from local_eval.archived import fill_from_archive
from local_eval.assess import FEWEST, assess
from local_eval.dry_run import verdict
from local_eval.dry_run.causes import excuse, with_causes
from local_eval.dry_run.constants import Change, reduce
from local_eval.dry_run.outcome import Outcome
from local_eval.dry_run.program import Program
from local_eval.dry_run.projection import Projection, project
from local_eval.dry_run.run import execute
from local_eval.dry_run.sandbox import Sandbox, sandbox
from local_eval.dry_run.stand_in import StandIn
from local_eval.dry_run.weights import archive_statistics
from local_eval.evaluate import Samples, evaluate, read_samples
from local_eval.pool import ModelPool
from local_eval.report.assessment import assessment_lines
from local_eval.report.notes import notes_on
from local_eval.report.table import aligned, table_of
from local_eval.setting import Workspace

_SPARE_BYTES = 10**9

# A method that stands in a file, as the run cell names it.
_BY_FILE = re.compile(r"""\bsubmit\(\s*(["'][^"']*\.py|mixture_of\()""")


@dataclass(frozen=True)
class DryRun:
    """What a dry run found. samples: None where what was written cannot be scored."""

    program: Program
    n_models: int
    changes: Sequence[Change]
    outcome: Outcome
    checks: Sequence[Check]
    projection: Projection | None
    samples: Samples | None
    own_stand_in: bool = True  # the small one that is made for the checks

    @property
    def exit_code(self) -> int:
        """0 where Kaggle would take it, 1 where a check failed or could not be decided."""
        return 0 if all(check.ok for check in self.checks) else 1

    @property
    def unusable(self) -> bool:
        """Did nothing come out that could be scored?"""
        words = {"run", "archive", "members", "tensors", "outputs", "writes", "processes"}
        return any(check.name in words and check.ok is False for check in self.checks)

    @property
    def kaggles_word(self) -> str | None:
        """What Kaggle would have shown instead of a score."""
        return verdict.kaggles_word(self.checks, self.outcome)


def dry_run(
    program: Program,
    data: StandIn,
    n_models: int,
    *,
    device: str = "auto",
    timeout_s: float = 1800.0,
    namespaces: bool | None = None,
    inputs: Mapping[str, Path] = {},
    devices: Sequence[str] = (),
    score: bool = True,
    progress: bool = True,
) -> DryRun:
    """Execute `program` on the stand-in with `n_models` checkpoints instead of 512 (unless 512 are asked for) and look
    at what it wrote. device: what the program finds; devices: where its checkpoints are read, an entry a process;
    namespaces, inputs: see `sandbox`."""
    program, changes = reduce(program, n_models) if n_models != N_CHECKPOINTS else (program, [])
    on_cpu = choose_device(device).type != "cuda"
    # Checkpoints, an archive being written and the one it replaces, all in float32; and something over.
    limit_bytes = 4 * n_models * largest_checkpoint(data.original) + _SPARE_BYTES
    limit_bytes += sum(path.stat().st_size for folder in inputs.values() for path in folder.rglob("*"))
    options = {
        "map_cuda": on_cpu,
        "limit_bytes": limit_bytes,
        "namespaces": namespaces,
        "script": program.name if program.notebook is None else None,
        "inputs": inputs,
    }
    with sandbox(data.tree, **options) as box:
        # Without a number in its text the program goes on until enough was seen.
        most_saves = 2 * n_models + 8 if changes or n_models == N_CHECKPOINTS else n_models
        limits = {"timeout_s": timeout_s, "limit_bytes": limit_bytes, "most_saves": most_saves}
        outcome = execute(program, box, **limits, progress=progress)
        archive = _pack_seen(box, n_models) if outcome.stopped else box.archive
        checks = verdict.program_checks(outcome, box.kaggle, n_models, sum(data.sizes.values()))
        excused = excuse(outcome, box.kaggle / "input") is not None and not box.archive.exists()
        not_seen = "the run ended before it" if excused else "no checkpoint under its name to look at"
        archive_checks, readable = [Check("archive", None, f"not seen: {not_seen}")], False
        if archive is not None and not excused:
            archive_checks = verify(archive, n_models, data.original, progress=progress)
            readable = all(check.ok or check.name == "all different" for check in archive_checks)
            archive_checks = with_causes(archive_checks, outcome)
        samples = None
        if readable:
            statistics = archive_statistics(archive, data.original, data.images, progress=progress)
            archive_checks.append(verdict.statistics_check(*statistics))
            if data.workspace and score and n_models >= 2:
                pool = fill_from_archive(data.workspace, archive, devices=devices, progress=progress)
                samples, outputs = _samples(data.workspace, program.path.stem, pool, n_models)
                archive_checks.append(outputs)
            archive_checks.append(verdict.spread_check(_spread(samples), n_models))
        ledger = box.kaggle / "working" / FILE_NAME
        every_gpu = _takes_every_gpu(program, ledger)
        projection = project(outcome, data.sizes, n_models, every_gpu=every_gpu)
        if outcome.fault and not outcome.stopped and projection and not projection.epochs:
            projection = None  # what was saved before it ended is no checkpoint that took its time
        closing = [verdict.size_check(box.kaggle / "working", box.archive, n_models)]
        if projection or outcome.fault is None or outcome.stopped:
            closing.insert(0, verdict.time_check(projection, _least_share(ledger)))
    checks = [checks[0], verdict.tables_check(data.sizes), *archive_checks, *checks[1:], *closing]
    checks = [replace(check, found=check.found.replace(str(box.kaggle), "/kaggle")) for check in checks]
    return DryRun(program, n_models, changes, outcome, checks, projection, samples, data.own)


def _least_share(ledger: Path) -> float:
    """To what share of its time a plan of the kit's can bring a checkpoint; 1 where there is no such plan."""
    with suppress(InputError, KeyError, TypeError):  # another program's file of that name
        if plan := Ledger(ledger).first("plan"):
            cost = StepCost(plan["fixed_s"], plan["step_s"])
            return cost.seconds(1) / cost.seconds(max(1, plan["wanted"]))
    return 1.0


def _takes_every_gpu(program: Program, ledger: Path) -> bool:
    """Is it a submission of the kit whose method stands in a file, so that each GPU gets a process?"""
    with suppress(InputError):
        return Ledger(ledger).first("start") is not None and any(_BY_FILE.search(code.text) for code in program.codes)
    return False


def _pack_seen(box: Sandbox, n_models: int) -> Path | None:
    """The first checkpoints of a program that was stopped, packed as the starter does; None where they are no files."""
    names = [MEMBER_NAME.format(index=index).rpartition("/")[2] for index in range(n_models)]
    there = {path.name: path for path in box.kaggle.rglob("unlearned_checkpoint_*.pth")}
    if any(name not in there for name in names):
        return None
    archive = box.folder / "seen.zip"
    with ExitStack() as files:
        pack(archive, (files.enter_context(there[name].open("rb")) for name in names))
    return archive


def _samples(workspace: Workspace, name: str, pool: ModelPool, n_models: int) -> tuple[Samples | None, Check]:
    """The outputs of the checkpoints; None where weights that are finite give outputs that are not."""
    try:
        return read_samples(workspace, {name: pool}, n_models), Check("outputs", True, "finite")
    except InputError as error:
        remedy = "the weights are finite, but too large: a smaller step or learning rate"
        return None, Check("outputs", False, str(error).partition(": ")[2], remedy)


def _spread(samples: Samples | None) -> float | None:
    if samples is None:
        return None
    (method,) = samples.methods.values()
    between = [sample.confidence.std(axis=0, ddof=1) for sample in (method, samples.retrained)]
    return float(np.median(between[0] / np.maximum(between[1], 1e-12)))


def lines_of(result: DryRun, brief: bool = False) -> list[str]:
    """The verdict, a line a check; the last output of a run that ended early; the score with its interval."""
    lines = []
    if result.changes:
        places = ", ".join(_place(change) for change in result.changes)
        lines.append(f"{result.n_models} instead of 512 checkpoints, as the text says at {places}")
    lines += verdict_lines(result.checks)
    outcome = result.outcome
    if result.unusable:
        if outcome.saves:
            lines.append(
                f"last checkpoint: number {len(outcome.saves)}, at {outcome.where(outcome.saves[-1]['where'])}"
            )
        lines += ["last output:", *(f"    {line}" for line in outcome.output or ("(none)",))]
    if result.samples is not None:
        rows = evaluate(result.samples)
        lines += ["", *aligned(table_of(rows)), ""]
        if result.own_stand_in:
            lines.append(
                f"{result.n_models} models on the dry run's own stand-in, which is made for the checks above: this "
                "score ranks nothing and predicts nothing; --setting FOLDER scores on a setting of yours"
            )
        else:
            lines += notes_on(rows)
        if result.n_models >= FEWEST and not brief and not result.own_stand_in:
            assessments, _ = assess(result.samples)
            lines += ["", *assessment_lines(assessments[0])]
    return [*lines, "", verdict.counted(result.checks, result.kaggles_word)]


def _place(change: Change) -> str:
    return f"line {change.line}" if change.number is None else f"cell {change.number} line {change.line}"


def facts_of(result: DryRun) -> dict[str, Any]:
    """The same as plain JSON values."""
    outcome, rows = result.outcome, evaluate(result.samples) if result.samples else []
    return {
        "program": result.program.name,
        "n_models": result.n_models,
        "ok": result.exit_code == 0,
        "kaggles_word": result.kaggles_word,
        "checks": [asdict(check) for check in result.checks],
        "fault": asdict(outcome.fault) if outcome.fault else None,
        "output": list(outcome.output),
        "changes": [asdict(change) for change in result.changes],
        "projection": asdict(result.projection) if result.projection else None,
        "rows": [{**asdict(row), "epsilon": np.asarray(row.epsilon, float).tolist()} for row in rows],
    }
