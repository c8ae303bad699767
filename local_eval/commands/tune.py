"""The command tune: search a method's hyper-parameters, and check the best on a forget set the search never saw."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from kit.budget import format_duration, parse_duration
from kit.competition import N_CHECKPOINTS
from kit.errors import InputError
from kit.ledger import write_atomically
from kit.methods import get_method, with_settings
from kit.tools.cli import answer
from local_eval.audit.intervals import decimals
from local_eval.commands import options as shared
from local_eval.commands.pools import note_retrained
from local_eval.dry_run.projection import EPOCH_S
from local_eval.evaluate import sample_of
from local_eval.published import use_published
from local_eval.recipes import GIVEN
from local_eval.report.table import aligned, markdown
from local_eval.report.tune_plot import plot_search
from local_eval.report.write import provenance
from local_eval.retrained import fill_retrained, retrained_pool
from local_eval.setting import Workspace, open_workspace
from local_eval.tune import Result, Search, best_of, measure, ranges_of, results_of, rungs_of, search
from local_eval.unlearned import broken_reason, fill_points

CARD = "T4"
SHOWN = 30  # trials in the table of the terminal


def tune(args: argparse.Namespace) -> int:
    """Search inside --limit or --trials; write tune.json, tune.md and tune.png. 1 where no trial gave a model."""
    shared.at_least(args.n_models, 4)
    if args.check_models:
        shared.at_least(args.check_models, 2, "--check-models")
    if args.search_seed < 0:
        raise InputError(f"--search-seed {args.search_seed}: must be 0 or more")
    limit_s = parse_duration(args.limit) if args.limit else math.inf
    fits_s = math.inf if args.fits is None else parse_duration(args.fits)
    method = shared.read_method(args, args.method, args.set)
    ranges = ranges_of(method, args.range)
    workspace = shared.workspace_of(args)
    other = other_forget_set(args, workspace) if args.check_models else None
    devices = shared.devices_for(args, workspace, args.n_models)
    common = {"devices": devices, "progress": not args.quiet}
    note_retrained(workspace, args.n_models)
    fill_retrained(workspace, args.n_models, **common)
    longest_s = math.inf if args.fits is None else longest(workspace, fits_s, devices)
    plan = Search(method, ranges, rungs_of(args.n_models), args.search_seed, args.seed, longest_s)
    if measured := results_of(workspace.folder / plan.name, longest_s):
        print(f"reusing {len(measured)} measurements in {workspace.folder / plan.name}", file=sys.stderr)
    found = search(workspace, plan, n_trials=args.trials, limit_s=limit_s, **common)
    chosen = best_of(found)
    folder = workspace.folder / plan.name
    checks = [] if chosen is None or other is None else check(args.check_models, workspace, other, plan, chosen, common)
    table = table_of(plan, found, chosen)
    notes = notes_on(plan, found, chosen, checks)
    if args.check_models and other is None:
        notes.append(f"not checked on another forget set: {workspace.setting.forget} gives no other")
    facts = provenance(workspace, shared.command_line(args)) | {
        "method": method.name,
        "ranges": {name: list(span) for name, span in ranges.items()},
        "results": [_plain(result) for result in found],
        "best": _plain(chosen) if chosen else None,
        "check": checks,
        "picture": str(plot_search(plan, found, chosen, folder / "tune.png")),
    }
    text = [f"# {method.name}, {workspace.setting.forget}, {workspace.setting.architecture}", "", *markdown(table), ""]
    text += [*(f"- {note}" for note in notes), "", "![trials](tune.png)"]
    write_atomically(folder / "tune.json", (json.dumps(facts, indent=1) + "\n").encode())
    write_atomically(folder / "tune.md", ("\n".join(text) + "\n").encode())
    lines = [line.rstrip() for line in aligned(table)]
    if len(lines) > SHOWN:
        lines = [*lines[:SHOWN], f"... {len(lines) - SHOWN} more in {folder / 'tune.md'}"]
    lines += ["", *notes, f"report: {folder / 'tune.md'}, {folder / 'tune.png'}"]
    if chosen is not None:
        lines.append(shared.go_on(args, workspace, (*args.set, *chosen.settings)))
    answer(args, facts, lines)
    return 0 if chosen is not None else 1


def longest(workspace: Workspace, limit_s: float, devices: Sequence[str]) -> float:
    """Seconds that a checkpoint may take here so that 512 fit the limit on a T4 with the hidden data: an epoch of
    fine-tuning is timed here, and known there."""
    finetune = with_settings(get_method("finetune"), ["epochs=1"])
    (pool,) = fill_points(workspace, [finetune], 2, devices=devices, progress=False)
    epoch_s = float(sample_of(pool, 2, workspace).seconds.min())
    return epoch_s * limit_s / N_CHECKPOINTS / EPOCH_S[CARD]


def other_forget_set(args: argparse.Namespace, workspace: Workspace) -> Workspace | None:
    """The setting with another forget set, for the check; None where its policy always gives the same. InputError where
    its models cannot be made."""
    setting = replace(workspace.setting, data_seed=workspace.setting.data_seed + 1)
    where = {"data_root": args.data_root, "cache_dir": args.cache_dir, "progress": not args.quiet}
    try:
        if setting.recipe.startswith(GIVEN):
            raise InputError("the retrained models of this setting came as files")
        other = open_workspace(setting, workspace.folder.parent, **where)
    except InputError as error:
        raise InputError(f"the check on another forget set: {error}; or --check-models 0") from error
    return None if np.array_equal(*(where.splits.forget.images for where in (workspace, other))) else other


def check(
    n_models: int, workspace: Workspace, other: Workspace, plan: Search, chosen: Result, common: dict[str, Any]
) -> list[dict[str, Any]]:
    """The method as it stands and the best trial on the searched forget set and on another one, with as many models."""
    use_published(other)
    for where in (workspace, other):
        fill_retrained(where, n_models, **common)
    methods = [with_settings(plan.method, settings) for settings in ((), chosen.settings)]
    found = []
    for where in (workspace, other):
        pools = fill_points(where, methods, n_models, seed=plan.unlearn_seed, **common)
        retrained = sample_of(retrained_pool(where), n_models, where)
        values = [
            None if broken_reason(pool) else measure(sample_of(pool, n_models, where), retrained)["value"]
            for pool in pools
        ]
        found.append({"data_seed": where.setting.data_seed, "n_models": n_models, "as it stands": values[0]})
        found[-1]["best"] = values[1]
    return found


def table_of(plan: Search, found: Sequence[Result], chosen: Result | None) -> list[tuple[str, ...]]:
    """Header, then the trials: by the most models that each has, the best first."""
    last = {result.trial: result for result in found}  # found is in the order of the numbers of models
    order = sorted(last.values(), key=lambda r: (bool(r.broken), -r.n_models, -r.value, r.trial))
    header = ("trial", *plan.ranges, "models", "at 512", "retain acc", "forget acc", "test acc", "per checkpoint", "")
    table = [header]
    for result in order:
        values = with_settings(plan.method, result.settings).settings
        cells = (str(result.trial), *(f"{values[name]}" for name in plan.ranges), str(result.n_models))
        if math.isnan(result.seconds):
            table.append((*cells, "-", "-", "-", "-", "-", "no model"))
            continue
        mark = "best" if result is chosen else "too long" if result.broken else "" if result.trial else "as it stands"
        accuracies = (result.retain_accuracy, result.forget_accuracy, result.test_accuracy)
        value = "-" if result.broken else decimals(result.value)
        seconds = format_duration(result.seconds)
        table.append((*cells, value, *(f"{accuracy:.1%}" for accuracy in accuracies), seconds, mark))
    return table


def notes_on(plan: Search, found: Sequence[Result], chosen: Result | None, checks: Sequence[dict]) -> list[str]:
    notes = ["at 512: the score expected at 512 models from each example's shift and spread, accuracies included"]
    if chosen is None:
        return [*notes, f"no trial gave a model: {found[-1].broken}" if found else "the limit left no time for a trial"]
    notes.append(
        f"best: {' '.join(chosen.settings) or 'the method as it stands'}, measured with {chosen.n_models} models"
    )
    if chosen.n_models < plan.rungs[-1]:
        notes.append(f"no trial got {plan.rungs[-1]} models before the limit: run it again with a longer one to go on")
    failed = [result for result in found if result.broken and math.isnan(result.seconds)]
    notes += [f"trial {result.trial} ({' '.join(result.settings)}): {result.broken}" for result in failed[:5]]
    if checks:
        (here, there), tuned = checks, bool(chosen.settings)
        told = [f"{name} {'no model' if x is None else decimals(x)}" for name, x in list(there.items())[2:]]
        told = f"on a forget set the search never saw, {there['n_models']} models: {', '.join(told)}"
        if tuned and None not in (*here.values(), *there.values()):
            if min(row["as it stands"] for row in (here, there)) > 0:
                gains = [row["best"] / row["as it stands"] for row in (here, there)]
                told += f"; {gains[1]:.2f} times as good as it stands there, {gains[0]:.2f} times where it was searched"
            better = [row["best"] > row["as it stands"] for row in (here, there)]
            told += ": overfitted to the first" if better == [True, False] else ""
        notes.append(told)
    return notes


def _plain(result: Result) -> dict[str, Any]:
    """As JSON has it: nothing for what was not measured."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(result).items()
    }
