"""The command sweep: a method over values of its hyper-parameters, to a table, a picture and the best of them."""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from kit.errors import InputError
from kit.ledger import write_atomically
from kit.tools.cli import answer
from local_eval.assess import FEWEST
from local_eval.audit.predict import ranking_warning
from local_eval.commands import options as shared
from local_eval.commands.pools import note_retrained, note_reuse
from local_eval.commands.score_options import spec_of
from local_eval.metric import FORMS
from local_eval.report.sweep import sweep_facts, sweep_table
from local_eval.report.sweep_plot import plot_sweep
from local_eval.report.table import aligned, markdown, row_records
from local_eval.report.write import provenance
from local_eval.results import check_files, write_csv
from local_eval.retrained import fill_retrained
from local_eval.sweep import CRITERIA, Outcome, Point, Sweep, best, fill_sweep, grid
from local_eval.unlearned import file_name, unlearned_pool


def sweep(args: argparse.Namespace) -> int:
    """Unlearn at every point of the grid, measure, and write sweep.json, sweep.md and sweep.png. 1 where no point gave
    a usable model."""
    shared.at_least(args.n_models)
    if args.best_by == "score" and args.n_models < FEWEST:
        raise InputError(f"--best-by score: {args.n_models} models say nothing of it: take {FEWEST} or more")
    method = shared.read_method(args, args.method)
    points, metric = grid(method, args.set), spec_of(args)
    check_files(args.csv)
    workspace = shared.workspace_of(args)
    pools = [unlearned_pool(workspace, point.method, args.seed) for point in points]
    note_retrained(workspace, args.n_models)
    note_reuse(f"models of {method.name}", args.n_models, *pools)
    devices = shared.devices_for(args, workspace, args.n_models)
    common = {"devices": devices, "progress": not args.quiet}
    fill_retrained(workspace, args.n_models, **common)
    attack = FORMS[args.attacks]
    found = fill_sweep(workspace, points, args.n_models, seed=args.seed, metric=metric, attack=attack, **common)
    criterion, meaning = CRITERIA[args.best_by]
    chosen = best(found, criterion)
    folder = workspace.folder / f"sweep-{file_name(found.method)}-{_digest(points, args.seed)}"
    folder.mkdir(exist_ok=True)
    picture = plot_sweep(found, chosen, folder / "sweep.png")
    facts = provenance(workspace, shared.command_line(args)) | sweep_facts(found, chosen)
    facts |= {"best_by": args.best_by, "attacks": args.attacks, "seed": args.seed, "picture": str(picture)}
    rows = [outcome.row for outcome in found.outcomes if outcome.row is not None]
    write_csv(args.csv, row_records(rows, {}, args.attacks))
    table, notes = sweep_table(found, chosen), _notes(found, chosen, meaning)
    architecture = Path(workspace.setting.architecture).name
    text = [f"# {found.method}, {workspace.setting.forget}, {architecture}", "", *markdown(table), ""]
    text += [*(f"- {note}" for note in notes), "", "![sweep](sweep.png)"]
    write_atomically(folder / "sweep.json", (json.dumps(facts, indent=1) + "\n").encode())
    write_atomically(folder / "sweep.md", ("\n".join(text) + "\n").encode())
    lines = [*(line.rstrip() for line in aligned(table)), "", *notes, f"report: {folder / 'sweep.md'}, {picture}"]
    if chosen is not None:
        lines.append(shared.go_on(args, workspace, chosen.point.settings))
    answer(args, facts, lines)
    return 0 if chosen is not None else 1


def _digest(points: Sequence[Point], seed: int) -> str:
    """Names the sweep by method, grid and seed: with more models or another criterion it replaces itself."""
    identity = [seed, [point.method.identity for point in points]]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]


def _notes(found: Sweep, chosen: Outcome | None, meaning: str) -> list[str]:
    notes = ["gap: mean absolute difference of the retain, forget and test accuracy from the retrained models'"]
    if chosen is None:
        notes.append("no point gave a usable model")
    else:
        notes.append(f"best: {chosen.point.name}, by {meaning}")
    notes += [f"{outcome.point.name} gave no model: {outcome.broken}" for outcome in found.outcomes if outcome.broken]
    if not found.scored:
        notes.append(f"no score: {found.n_models} models say nothing of it: it is shown from {FEWEST} on")
    if warning := ranking_warning(found.n_models):
        notes.append(warning)
    return notes
