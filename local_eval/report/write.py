"""report.json and report.md of an evaluation."""

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kit import __version__
from kit.ledger import write_atomically
from local_eval.distances import Distance
from local_eval.evaluate import Row
from local_eval.pool import ModelPool
from local_eval.report.table import markdown
from local_eval.setting import Workspace
from local_eval.unlearned import limit_facts

SCHEMA = 1  # of report.json, see docs/score.md: raised where a name goes or changes its meaning


def versions() -> dict[str, str]:
    return {
        "kit": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "numpy": np.__version__,
    }


def facts_of(
    workspace: Workspace,
    rows: Sequence[Row],
    pools: Mapping[str, ModelPool],
    distances: Mapping[str, Distance] | None = None,
    *,
    command: str | None = None,
    **further: Any,
) -> dict[str, Any]:
    """Everything a report says, as plain JSON values."""
    return {
        **provenance(workspace, command),
        "rows": [{**asdict(row), "epsilon": np.asarray(row.epsilon, float).tolist()} for row in rows],
        "distances": {name: asdict(distance) for name, distance in (distances or {}).items()},
        "pools": {name: pool.identity for name, pool in pools.items()},
        "limits": {name: facts for name, pool in pools.items() if (facts := limit_facts(pool))},
        **further,
    }


def provenance(workspace: Workspace, command: str | None = None) -> dict[str, Any]:
    """The setting, the command line if there was one, versions and date, as plain JSON values."""
    return {
        "setting": asdict(workspace.setting),
        "setting_hash": workspace.name,
        "n_forget": len(workspace.splits.forget),
        "n_retain": len(workspace.splits.retain),
        "command": command,
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
        "schema": SCHEMA,
    }


def write_report(
    folder: Path, facts: Mapping[str, Any], tables: Sequence[Sequence[Sequence[str]]], notes: Sequence[str]
) -> list[Path]:
    """Write both files into `folder`, each complete or not at all; their paths are returned. The first line of each
    table is its header."""
    setting = facts["setting"]
    architecture, recipe = Path(setting["architecture"]).name, Path(setting["recipe"]).name
    head = [
        f"# {setting['source'].rsplit('/', 1)[-1]}, {architecture}, {setting['forget']}",
        "",
        f"{facts['n_retain']:,} retain and {facts['n_forget']:,} forget examples, recipe {recipe}, "
        f"setting {facts['setting_hash']}, {facts['date']}.",
        "",
    ]
    lines = [line for table in tables for line in (*markdown(table), "")]
    text = "\n".join([*head, *lines, *(f"- {note}" for note in notes)]) + "\n"
    write_atomically(folder / "report.json", (json.dumps(facts, indent=1) + "\n").encode())
    write_atomically(folder / "report.md", text.encode())
    return [folder / "report.json", folder / "report.md"]
