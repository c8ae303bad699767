"""The command sweep: a method over values of its hyper-parameters, to a table, a picture and the best of them."""

import argparse
import hashlib
import json
import shlex
from collections.abc import Callable, Sequence

from kit.cli import answer
from kit.errors import InputError
from kit.methods import get_method
from kit.workers import n_cores
from local_eval.assess import FEWEST
from local_eval.audit.predict import ranking_warning
from local_eval.evaluate import FORMS
from local_eval.pool import write_atomically
from local_eval.report.sweep import sweep_facts, sweep_table
from local_eval.report.sweep_plot import plot_sweep
from local_eval.report.table import aligned, markdown
from local_eval.report.write import provenance
from local_eval.retrained import fill_retrained
from local_eval.score_command import at_least_two, spec_of
from local_eval.setting import Workspace
from local_eval.sweep import CRITERIA, Outcome, Point, Sweep, best, fill_sweep, grid


def sweep_command(args: argparse.Namespace, workspace_of: Callable[[argparse.Namespace], Workspace]) -> int:
    """Unlearn at every point of the grid, measure, and write sweep.json, sweep.md and sweep.png. 1 where no point gave
    a usable model."""
    at_least_two(args.n_models)
    if args.best_by == "score" and args.n_models < FEWEST:
        raise InputError(f"--best-by score: {args.n_models} models say nothing of it: take {FEWEST} or more")
    points = grid(args.method, args.set)
    metric = spec_of(args)
    workspace = workspace_of(args)
    options = {"workers": args.workers or n_cores(), "progress": not args.quiet}
    fill_retrained(workspace, args.n_models, **options)
    sweep = fill_sweep(
        workspace,
        args.method,
        points,
        args.n_models,
        seed=args.seed,
        metric=metric,
        attack=FORMS[args.attacks],
        **options,
    )
    criterion, meaning = CRITERIA[args.best_by]
    chosen = best(sweep, criterion)
    folder = workspace.folder / f"sweep-{sweep.method.replace(':', '-')}-{_digest(args, points)}"
    folder.mkdir(exist_ok=True)
    picture = plot_sweep(sweep, chosen, folder / "sweep.png")
    facts = provenance(workspace) | sweep_facts(sweep, chosen) | {"best_by": args.best_by, "attacks": args.attacks}
    facts |= {"seed": args.seed, "picture": str(picture)}
    table, notes = sweep_table(sweep, chosen), _notes(sweep, chosen, meaning)
    text = [f"# {sweep.method}, {workspace.setting.forget}, {workspace.setting.architecture}", "", *markdown(table), ""]
    text += [*(f"- {note}" for note in notes), "", "![sweep](sweep.png)"]
    write_atomically(folder / "sweep.json", (json.dumps(facts, indent=1) + "\n").encode())
    write_atomically(folder / "sweep.md", ("\n".join(text) + "\n").encode())
    lines = [*(line.rstrip() for line in aligned(table)), "", *notes, f"report: {folder / 'sweep.md'}, {picture}"]
    if chosen is not None:
        settings = " ".join(f"--set {shlex.quote(setting)}" for setting in chosen.point.settings)
        lines.append(f"go on: python -m local_eval run --setting {workspace.folder} --method {args.method} {settings}")
    answer(args, facts, lines)
    return 0 if chosen is not None else 1


def _digest(args: argparse.Namespace, points: Sequence[Point]) -> str:
    """Names the sweep by method, grid and seed: with more models or another criterion it replaces itself."""
    source = get_method(args.method).source
    identity = [args.method, source, args.seed, [point.settings for point in points]]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]


def _notes(sweep: Sweep, chosen: Outcome | None, meaning: str) -> list[str]:
    notes = ["gap: mean absolute difference of the retain, forget and test accuracy from the retrained models'"]
    if chosen is None:
        notes.append("no point gave a usable model")
    else:
        notes.append(f"best: {chosen.point.name}, by {meaning}")
    notes += [f"{outcome.point.name} gave no model: {outcome.broken}" for outcome in sweep.outcomes if outcome.broken]
    if warning := ranking_warning(sweep.n_models):
        notes.append(warning)
    return notes
