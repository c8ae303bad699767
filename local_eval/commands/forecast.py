"""The command forecast: a method on every setting that stands for Kaggle's, and what they say together."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from kit.methods import Method
from kit.tools.cli import answer
from local_eval.assess import FEWEST
from local_eval.commands import options as shared
from local_eval.commands.pools import begun, note_retrained
from local_eval.evaluate import evaluate, read_samples
from local_eval.report.table import aligned
from local_eval.retrained import fill_settings
from local_eval.setting import Workspace
from local_eval.unlearned import fill_unlearned
from local_eval.validity import (
    NOT_VALIDATED,
    Validation,
    expected_score,
    geometric_mean,
    validation_of,
    validation_together,
)

HEADER = ("stand-in", "expected at 512", "retain", "test", "rank correlation with Kaggle")


def forecast(args: argparse.Namespace) -> int:
    shared.at_least(args.n_models, FEWEST)
    method, workspaces = shared.method_of(args), {}
    for name in shared.LIKE:
        workspaces[name] = shared.workspace_of(argparse.Namespace(**vars(args) | {"like": name}))
        note_retrained(workspaces[name], args.n_models)
        begun(args, workspaces[name], method)
    settings = [workspace.setting for workspace in workspaces.values()]
    devices = shared.devices_for(args, workspaces[name], args.n_models)
    fill_settings([*workspaces.values()], args.n_models, devices=devices, progress=not args.quiet)
    rows = {name: _measured(args, workspace, method, devices) for name, workspace in workspaces.items()}
    local, together = geometric_mean([row["expected"] for row in rows.values()]), validation_together(settings)
    table = [HEADER]
    for setting, (name, row) in zip(settings, rows.items(), strict=True):
        facts = f"{row['expected']:.4f}", f"{row['retain']:.1%}", f"{row['test']:.1%}"
        table.append((name, *facts, _correlation(validation_of(setting))))
    table.append(("together", f"{local:.4f}", "", "", _correlation(together)))
    found = {"method": method.name, "n_models": args.n_models, "stand_ins": rows, "expected": local}
    said = NOT_VALIDATED
    if together is not None:
        said = together.about(local)
        low, high = together.interval
        found["spearman"] = {"value": together.spearman, "low": low, "high": high, "n_points": together.n_points}
        found["kaggle"] = asdict(together.forecast(local)) if together.predicts else None
    answer(args, found, [*(line.rstrip() for line in aligned(table)), "", said])
    return 0


def _measured(
    args: argparse.Namespace, workspace: Workspace, method: Method, devices: Sequence[str]
) -> dict[str, float]:
    """What the method gets on one stand-in."""
    pool = fill_unlearned(workspace, method, args.n_models, seed=args.seed, devices=devices, progress=not args.quiet)
    samples = read_samples(workspace, {method.name: pool}, args.n_models)
    row = next(row for row in evaluate(samples) if row.name == method.name)
    return {"expected": expected_score(samples, row), "retain": row.retain_accuracy, "test": row.test_accuracy}


def _correlation(found: Validation | None) -> str:
    if found is None:
        return "not measured"
    low, high = found.interval
    return f"{found.spearman:.2f} [{low:.2f}, {high:.2f}] over {found.n_points} submissions"
