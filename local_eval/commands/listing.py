"""The command list: the settings below a work folder and their pools, with the score where one was written down."""

import argparse
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.errors import InputError
from kit.tools.cli import answer
from local_eval.audit.intervals import decimals
from local_eval.commands.pools import LABEL, SCORE
from local_eval.pool import ModelPool, read_json
from local_eval.report.table import aligned
from local_eval.results import check_files, write_csv

_HEADER = ("pool", "method", "models", "score", "date", "label")


def list_pools(args: argparse.Namespace) -> int:
    check_files(args.csv)
    if not args.work_dir.is_dir():
        raise InputError(f"{args.work_dir}: no such folder: give --work-dir, the one that run was given (runs)")
    lines, records, faults = [], [], []
    for folder in sorted(meta.parent for meta in args.work_dir.glob("*/setting.json")):
        broken: list[str] = []
        described = _readable(broken, _described, folder)
        pools = sorted(meta.parent for meta in folder.glob("*/pool.json"))
        rows = [row for pool in pools for row in _readable(broken, _record, folder, pool)]
        records, faults = records + rows, faults + broken
        lines += [*([""] if lines else []), f"{folder}: {''.join(described)}".rstrip(": ")]
        if rows:
            texts = [
                (
                    row["pool"],
                    _method(row, rows),
                    str(row["n_models"]),
                    decimals(row["score"]),
                    row["date"],
                    row["label"],
                )
                for row in rows
            ]
            lines += [f"  {line.rstrip()}" for line in aligned([_HEADER, *texts])]
        lines += [f"  {line}" for line in broken or ([] if rows else ["no models yet"])]
    if args.csv and not records:
        raise InputError(f"{args.work_dir}: holds no pools to write to {args.csv}")
    write_csv(args.csv, records)
    lines = lines or [f"{args.work_dir}: holds no setting yet: python -m local_eval run"]
    answer(args, {"pools": records, "faults": faults}, lines)
    return 1 if faults else 0


def _readable(faults: list[str], read: Callable[..., Any], *args: Any) -> list[Any]:
    """What was read, or nothing and one fault more: what cannot be read hides none of the others."""
    try:
        return [read(*args)]
    except InputError as error:
        faults.append(str(error))
        return []


def _record(folder: Path, path: Path) -> dict[str, Any]:
    pool = ModelPool.open(path)
    made = {**_made(pool), **pool.identity}
    hyper = made.get("hyper", {})
    method = made.get("method") or ("" if pool.identity.get("kind") != "unlearned" else "checkpoints")
    changed = max(file.stat().st_mtime for file in [pool.folder / "pool.json", *pool.folder.glob("model_*.npz")])
    return {
        "setting": str(folder),
        "pool": pool.folder.name,
        "method": method,
        "hyper": json.dumps(hyper),
        "n_models": len(pool),
        "score": _cached_score(pool),
        "label": label.read_text().strip() if (label := pool.folder / LABEL).exists() else "",
        "date": time.strftime("%Y-%m-%d %H:%M", time.localtime(changed)),
    }


def _made(pool: ModelPool) -> dict[str, Any]:
    """Method and hyper-parameters of models that came as an archive, where its ledger told them."""
    if "archive" not in pool.identity or 0 not in pool:
        return {}
    try:
        return {name: value for name, value in pool.facts(0).items() if name in ("method", "hyper")}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # a broken model is told by what reads it
        return {}


def _cached_score(pool: ModelPool) -> float | None:
    """The competition's score that was written down beside the models, if it was with as many as there are now."""
    found = _of_run(pool)
    return _of_score(pool) if found is None else found


def _of_score(pool: ModelPool) -> float | None:
    try:
        kept = json.loads((pool.folder / SCORE).read_text())
        return kept["score"] if kept["n_models"] == len(pool) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of_run(pool: ModelPool) -> float | None:
    try:
        facts = json.loads((pool.folder / "report.json").read_text())
        if facts.get("score_options"):  # by other constants, so that it is no match for the others
            return None
        written = {row["name"]: row["score"] for row in facts["rows"] if row["n_models"] == len(pool)}
        return written.get(pool.identity.get("method"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none yet, or of another version
        return None


def _method(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The method with what tells its pool from the others of the same method; --json and --csv have all of it."""
    alike = [json.loads(other["hyper"]) for other in rows if other["method"] == row["method"]]
    hyper = json.loads(row["hyper"]).items()
    telling = [f"{name}={value}" for name, value in hyper if any(other.get(name) != value for other in alike)]
    return " ".join([row["method"] or "-", *telling])


def _described(folder: Path) -> str:
    setting = read_json(folder / "setting.json", "a setting")
    named = (Path(str(setting.get(name))).name for name in ("source", "architecture", "recipe"))
    return f"{', '.join(named)}, forget {setting.get('forget')}"
