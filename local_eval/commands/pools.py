"""The pools and archives that a command line names: opened, read and told apart in one way."""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit.budget import format_duration
from kit.errors import InputError
from kit.ledger import write_atomically
from kit.methods import Method
from local_eval.archived import fill_from_files
from local_eval.checkpoints import is_checkpoint
from local_eval.commands.options import data_words, load_setting, note_forget, refuse_beside_setting
from local_eval.devices import devices_of
from local_eval.evaluate import Row, Samples
from local_eval.given import doubts, open_given
from local_eval.pool import ModelPool
from local_eval.recipes import GIVEN
from local_eval.retrained import retrained_pool
from local_eval.setting import Workspace, reopen
from local_eval.unlearned import emptied, unlearned_pool

LABEL = "label.txt"  # in the folder of a pool: what its user calls it
SCORE = "score.json"  # there too: its score, where `score`, `compare` or `report` computed it


@dataclass(frozen=True)
class Opened:
    """pools: by the name to show; archives: those that pools were read from, by the same names; faults: what is wrong
    with what could not be opened, by its path's name."""

    workspace: Workspace
    pools: dict[str, ModelPool]
    archives: dict[str, Path]
    faults: dict[str, str]


def open_pools(args: argparse.Namespace, *, tolerant: bool = False) -> Opened:
    """The setting and the pools, of checkpoints read first. Raises InputError for a pool that is given twice, and for
    one that cannot be opened unless `tolerant`."""
    workspace = _setting_of(args)
    opened: dict[Path, ModelPool] = {}
    faults, files = {}, {}
    for paths in _samples(args.pools, workspace):
        path = paths[0].parent if len(paths) > 1 else paths[0]
        try:
            pool = _open(paths, workspace, args)
        except InputError as error:
            if not tolerant:
                raise
            faults[path.stem or str(path)] = str(error)
            continue
        for other, its in opened.items():
            if its.folder.resolve() == pool.folder.resolve():
                same = "is given twice" if path == other else f"is the pool that {other} is"
                raise InputError(f"{path}: {same}: give each once")
        _check_unlike_retrained(path, pool, workspace)
        opened[path] = pool
        files[path] = path if len(paths) == 1 and not _is_pool(path) else None
    names = names_of(list(opened.values()), [path.stem for path in opened])
    archives = {name: files[path] for name, path in zip(names, opened, strict=True) if files[path]}
    return Opened(workspace, dict(zip(names, opened.values(), strict=True)), archives, faults)


def _setting_of(args: argparse.Namespace) -> Workspace:
    """Where pools are compared: the setting of --retrained, of --setting, or that which a pool lies in."""
    if args.retrained:
        return given_workspace(args)
    if args.original:
        raise InputError("--original: belongs to --retrained, the retrained models that came as files beside it")
    if args.setting is not None:
        workspace = reopen(args.setting, checked=True)
        refuse_beside_setting(args, workspace.setting)
        return workspace
    if given := data_words(args):
        raise InputError(f"{given[0]}: says on which data --retrained FILES were made: give those, or --setting FOLDER")
    folders = [path.resolve() for path in args.pools if _is_pool(path) or (path / "setting.json").exists()]
    if not folders and (files := [path for path in args.pools if _is_files(path)]):
        raise InputError(
            f"{files[0]}: needs --setting FOLDER, a run's with retrained models, or --retrained FILES with --source "
            "and --architecture"
        )
    if args.pools and not any(
        path.exists() or _is_files(path) for path in args.pools
    ):  # one beside others is told later
        raise InputError(f"{args.pools[0]}: does not exist: run the step that makes it, or mend the name")
    if arrays := [path for path in args.pools if path.suffix in (".npy", ".npz")]:
        raise InputError(f"{arrays[0]}: arrays are given with --logits or --confidences")
    beside = [folder for path in folders or args.pools for folder in (path.resolve(), path.resolve().parent)]
    return reopen(next((f for f in beside if (f / "setting.json").exists()), beside[1]), checked=True)


def given_workspace(args: argparse.Namespace) -> Workspace:
    """The setting of --retrained: data and architecture from the options, or from --setting."""
    progress = not args.quiet
    if args.setting is not None:
        before = reopen(args.setting, checked=True)
        refuse_beside_setting(args, before.setting)
        setting, splits, root = before.setting, before.splits, before.folder.resolve().parent
    else:
        if args.source is None:
            raise InputError("--retrained: say on which data: --source, such as image-folder:PATH, and --forget")
        root = args.work_dir
        where = {"data_root": args.data_root, "cache_dir": args.cache_dir, "progress": progress}
        setting, splits = load_setting(args, **where)
        note_forget(args, setting, splits)
    devices = devices_of(args.device, args.slots)
    return open_given(setting, splits, root, args.retrained, args.original, devices=devices, progress=progress)


def _samples(paths: Sequence[Path], workspace: Workspace) -> list[list[Path]]:
    """What is one sample each: a pool, an archive, a folder; loose checkpoints of one folder together; of a setting's
    folder all its pools."""
    samples: list[list[Path]] = []
    loose: dict[Path, list[Path]] = {}
    for path in paths:
        if (path / "setting.json").exists():
            if not (inside := pools_in(path)):
                raise InputError(f"{path}: has no unlearned models yet: python -m local_eval unlearn --setting {path}")
            samples += [[folder] for folder in inside]
        elif path.is_file() and is_checkpoint(path):
            if path.parent not in loose:
                samples.append(loose.setdefault(path.parent, []))
            loose[path.parent].append(path)
        else:
            samples.append([path])
    return samples


def pools_in(folder: Path) -> list[Path]:
    """The unlearned pools in the folder of a setting that hold a model."""
    found = [ModelPool.open(meta.parent) for meta in sorted(folder.glob("*/pool.json"))]
    found = [pool for pool in found if pool.identity.get("kind") == "unlearned" and len(pool)]
    single = [pool for pool in found if len(pool) == 1]
    if 0 < len(single) < len(found):
        names = ", ".join(pool.folder.name for pool in single)
        print(f"left out, as there is one model only: {names}", file=sys.stderr)
        found = [pool for pool in found if pool not in single]
    return [pool.folder for pool in found]


def _is_pool(path: Path) -> bool:
    return (path / "pool.json").exists()


def _is_files(path: Path) -> bool:
    """Is it something that checkpoints lie in, rather than a pool?"""
    if path.suffix == ".zip" or is_checkpoint(path) or any(mark in str(path) for mark in "*?["):
        return True
    return path.is_dir() and not _is_pool(path) and any(is_checkpoint(file) for file in path.rglob("*"))


def _open(paths: Sequence[Path], workspace: Workspace, args: argparse.Namespace) -> ModelPool:
    (path, *_) = paths
    if len(paths) == 1 and not _is_files(path):
        if not path.exists():
            raise InputError(f"{path}: does not exist: run the step that makes it, or mend the name")
        if path.is_file():
            raise InputError(f"{path}: is no pool, archive or checkpoint: give what a run made")
        if (kind := (pool := ModelPool.open(path)).identity.get("kind")) != "unlearned":
            raise InputError(f"{path}: holds the {kind} models of its setting: give unlearned ones")
        return pool
    if path.suffix == ".zip" and not path.exists():
        raise InputError(f"{path}: does not exist: run the step that makes it, or mend the name")
    if len(retrained_pool(workspace)) == 0:
        raise InputError(
            f"{workspace.folder}: has no retrained models to score against: python -m local_eval retrain --setting "
            f"{workspace.folder}"
        )
    return fill_from_files(workspace, paths, devices=devices_of(args.device, args.slots), progress=not args.quiet)


def _check_unlike_retrained(path: Path, pool: ModelPool, workspace: Workspace) -> None:
    """Refuse the retrained models' own files as unlearned ones: they would score as a perfect unlearner."""
    retrained = retrained_pool(workspace)
    if "checkpoints" not in pool.identity or 0 not in pool or 0 not in retrained:
        return
    if np.array_equal(pool.read(1)["forget"], retrained.read(1)["forget"]):
        raise InputError(f"{path}: holds the retrained models themselves: give the unlearned ones")


def names_of(pools: Sequence[ModelPool], stems: Sequence[str]) -> list[str]:
    """The methods' names, an archive's its file's; of one method with the hyper-parameters and the time limit that
    differ; with the folder's where nothing else tells two apart."""
    names = [pool.identity.get("method", stem) for pool, stem in zip(pools, stems, strict=True)]
    told = []
    for name, pool in zip(names, pools, strict=True):
        twins = [_marks(other) for other, its in zip(pools, names, strict=True) if its == name]
        differing = [mark for mark in _marks(pool) if len({twin.get(mark[0]) for twin in map(dict, twins)}) > 1]
        told.append(" ".join([name, *(f"{key}={value}" for key, value in differing)]))
    return [name if told.count(name) == 1 else pool.folder.name for name, pool in zip(told, pools, strict=True)]


def _marks(pool: ModelPool) -> list[tuple[str, str]]:
    """What may differ between two pools of one method."""
    marks = list(pool.identity.get("hyper", {}).items())
    limit_s = pool.identity.get("limit_s")
    return [*marks, ("limit", format_duration(limit_s))] if limit_s else marks


def n_models_of(args: argparse.Namespace, opened: Opened) -> int:
    """How many models of each pool are compared: as many as all have unless told otherwise; InputError for more."""
    sizes = _sizes(opened)
    fewest = min(sizes, key=sizes.__getitem__)
    if args.n_models is not None and args.n_models > sizes[fewest]:
        raise InputError(
            f"--n-models {args.n_models}: of {fewest} there are {sizes[fewest]}: ask for fewer, or make more"
        )
    if args.n_models is None and sizes[fewest] < 2:
        raise InputError(f"{fewest}: {sizes[fewest]} model: the score compares distributions and needs at least 2")
    return sizes[fewest] if args.n_models is None else args.n_models


def cut_notes(args: argparse.Namespace, opened: Opened) -> list[str]:
    """What is left out where pools hold unequal numbers of models and no number was asked for."""
    sizes = _sizes(opened)
    if args.n_models is not None or len(set(sizes.values())) == 1:
        return []
    held = ", ".join(f"{name} {n_models}" for name, n_models in sizes.items())
    return [f"only the first {min(sizes.values())} models of each kind are compared, as one has no more: {held}"]


def given_notes(opened: Opened, samples: Samples) -> list[str]:
    """What a reader must know of models that came as files."""
    return doubts(samples) if opened.workspace.setting.recipe.startswith(GIVEN) else []


def _sizes(opened: Opened) -> dict[str, int]:
    pools = opened.pools | {"retrained": retrained_pool(opened.workspace)}
    return {name: len(pool) for name, pool in pools.items()}


def begun(args: argparse.Namespace, workspace: Workspace, method: Method, limit: float = math.inf) -> ModelPool:
    """The pool to fill with models of a method; with --fresh its models are removed, else those it has are told."""
    pool = unlearned_pool(workspace, method, args.seed, limit)
    if args.fresh:
        pool = emptied(pool)
    else:
        remedy = f" in {pool.folder}: --fresh makes them anew"
        note_reuse(f"models of {method.name}", args.n_models, pool, remedy=remedy)
    keep_label(args, [pool])
    return pool


def keep_label(args: argparse.Namespace, pools: Sequence[ModelPool]) -> None:
    """Write --label down with the pool, where it is given."""
    if args.label is None:
        return
    if len(pools) != 1:
        raise InputError(f"--label {args.label}: is for one pool, {len(pools)} are given: label them one by one")
    write_atomically(pools[0].folder / LABEL, f"{args.label}\n".encode())


def keep_scores(pools: Mapping[str, ModelPool], rows: Iterable[Row], options: Mapping[str, Any]) -> None:
    """Write the score of each pool down beside its models, for `list`, where it is of all of them and by no options of
    its own (by other constants it is no match for the others)."""
    for row in rows:
        if not options and row.name in pools and row.n_models == len(pools[row.name]):
            kept = {"n_models": row.n_models, "score": row.score}
            write_atomically(pools[row.name].folder / SCORE, f"{json.dumps(kept)}\n".encode())


def note_reuse(what: str, n_models: int, *pools: ModelPool, remedy: str = "") -> None:
    """Say on stderr that models of an earlier run are taken."""
    if n_kept := sum(n_models - len(pool.missing(n_models)) for pool in pools):
        print(f"reusing {n_kept} {what}{remedy}", file=sys.stderr)


def note_retrained(workspace: Workspace, n_models: int) -> None:
    """The same of the retrained models."""
    pool = retrained_pool(workspace)
    note_reuse("retrained models", n_models, pool, remedy=f" in {pool.folder}")
