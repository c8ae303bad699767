"""The command forecast: a method on every setting that stands for Kaggle's, and what they say together."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kit.errors import BrokenModelError
from kit.methods import Method
from kit.tools.cli import answer
from local_eval.assess import FEWEST
from local_eval.audit.intervals import decimals
from local_eval.commands import options as shared
from local_eval.commands.pools import begun, note_retrained
from local_eval.evaluate import read_samples, score_row
from local_eval.metric import MetricSpec
from local_eval.report.table import aligned
from local_eval.report.write import provenance
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
    """Fill what is missing, measure, forecast. 1 where the method breaks the model of a stand-in: a line says why."""
    shared.at_least(args.n_models, FEWEST)
    method = shared.method_of(args)
    workspaces = {name: _workspace(args, name) for name in shared.LIKE}
    for workspace in workspaces.values():
        note_retrained(workspace, args.n_models)
        begun(args, workspace, method)
    every = [*workspaces.values()]
    common = {"devices": shared.devices_for(args, every[0], args.n_models), "progress": not args.quiet}
    fill_settings(every, args.n_models, **common)
    rows, faults = {}, {}
    for name, workspace in workspaces.items():
        try:
            rows[name] = _measured(args, workspace, method, common)
        except BrokenModelError as error:
            faults[name] = str(error)
    together = validation_together([workspace.setting for workspace in every])
    facts = {
        "method": method.name,
        "hyper": dict(method.hyper),
        "n_models": args.n_models,
        "seed": args.seed,
        "stand_ins": {name: provenance(workspaces[name]) | row for name, row in rows.items()},
        "faults": faults,
        "command": shared.command_line(args),
        **(_together(together, rows) if not faults else {}),
    }
    head = " ".join([method.name, *(f"{key}={value}" for key, value in method.hyper.items())])
    lines = [f"{head}, {args.n_models} models on each stand-in", ""]
    lines += [line.rstrip() for line in aligned(_table(workspaces, rows, together if not faults else None))]
    lines += ["", *(f"{name}: {why}" for name, why in faults.items())]
    answer(args, facts, [*lines, "no forecast without every stand-in" if faults else facts["said"]])
    return int(bool(faults))


def _workspace(args: argparse.Namespace, name: str) -> Workspace:
    """A stand-in as it was recorded: with the net that a CPU can train, on a GPU too."""
    architecture = shared.LIKE[name]["architecture"]
    return shared.workspace_of(argparse.Namespace(**vars(args) | {"like": name, "architecture": architecture}))


def _measured(
    args: argparse.Namespace, workspace: Workspace, method: Method, common: Mapping[str, Any]
) -> dict[str, float]:
    """What the method gets on one stand-in."""
    pool = fill_unlearned(workspace, method, args.n_models, seed=args.seed, **common)
    samples = read_samples(workspace, {method.name: pool}, args.n_models)
    row = score_row(method.name, samples.methods[method.name], samples.retrained, MetricSpec())
    return {"expected": expected_score(samples, row), "retain": row.retain_accuracy, "test": row.test_accuracy}


def _together(found: Validation | None, rows: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Of all stand-ins: what is expected, what Kaggle's score would be (None where that is not known), in words too."""
    local = geometric_mean([row["expected"] for row in rows.values()])
    facts = {"expected": local, "spearman": None, "kaggle": None, "said": NOT_VALIDATED}
    if found is None:
        return facts
    low, high = found.interval
    facts["spearman"] = {"value": found.spearman, "low": low, "high": high, "n_points": found.n_points}
    facts["kaggle"] = asdict(found.forecast(local)) if found.predicts else None
    return facts | {"said": found.about(local)}


def _table(
    workspaces: Mapping[str, Workspace], rows: Mapping[str, Mapping[str, float]], together: Validation | None
) -> Sequence[Sequence[str]]:
    table = [HEADER]
    for name, row in rows.items():
        facts = decimals(row["expected"]), f"{row['retain']:.1%}", f"{row['test']:.1%}"
        table.append((name, *facts, _correlation(validation_of(workspaces[name].setting))))
    if together is not None:
        local = geometric_mean([row["expected"] for row in rows.values()])
        table.append(("together", decimals(local), "", "", _correlation(together)))
    return table


def _correlation(found: Validation | None) -> str:
    if found is None:
        return "not measured"
    low, high = found.interval
    return f"{found.spearman:.2f} [{low:.2f}, {high:.2f}] over {found.n_points} submissions"
