"""The pools and archives that a command line names: opened, read and told apart in one way."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kit.budget import format_duration
from kit.errors import InputError
from kit.methods import Method
from local_eval.archived import fill_from_archive
from local_eval.devices import devices_of
from local_eval.pool import ModelPool
from local_eval.retrained import retrained_pool
from local_eval.setting import Workspace, reopen


@dataclass(frozen=True)
class Opened:
    """pools: by the name to show; archives: those that pools were read from, by the same names; faults: what is wrong
    with what could not be opened, by its path's name."""

    workspace: Workspace
    pools: dict[str, ModelPool]
    archives: dict[str, Path]
    faults: dict[str, str]


def open_pools(args: argparse.Namespace, *, tolerant: bool = False) -> Opened:
    """The setting and the pools. Raises InputError for a pool that is given twice, and for one that cannot be opened
    unless `tolerant`."""
    folders = [path.resolve().parent for path in args.pools if path.suffix != ".zip"]
    if args.setting is None and not folders:
        raise InputError("an archive needs --setting FOLDER: the folder of a run with retrained models")
    setting = args.setting or next((f for f in folders if (f / "setting.json").exists()), folders[0])
    workspace, opened, faults = reopen(setting, checked=True), {}, {}
    for path in args.pools:
        try:
            pool = _open(path, workspace, args)
        except InputError as error:
            if not tolerant:
                raise
            faults[path.stem or str(path)] = str(error)
            continue
        for other, its in opened.items():
            if its.folder.resolve() == pool.folder.resolve():
                raise InputError(f"{path}: is the pool that {other} is: give each once")
        opened[path] = pool
    names = names_of(list(opened.values()), [path.stem for path in opened])
    archives = {name: path for name, path in zip(names, opened, strict=True) if path.suffix == ".zip"}
    return Opened(workspace, dict(zip(names, opened.values(), strict=True)), archives, faults)


def _open(path: Path, workspace: Workspace, args: argparse.Namespace) -> ModelPool:
    if not path.exists():
        raise InputError(f"{path}: does not exist: run the step that makes it, or mend the name")
    if path.suffix != ".zip":
        return ModelPool.open(path)
    devices = devices_of(args.device, args.slots)
    return fill_from_archive(workspace, path, devices=devices, progress=not args.quiet)


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
    """How many models of each pool are compared: as many as all have unless told otherwise."""
    return min(_sizes(opened).values()) if args.n_models is None else args.n_models


def cut_notes(args: argparse.Namespace, opened: Opened) -> list[str]:
    """What is left out where pools hold unequal numbers of models and no number was asked for."""
    sizes = _sizes(opened)
    if args.n_models is not None or len(set(sizes.values())) == 1:
        return []
    held = ", ".join(f"{name} {n_models}" for name, n_models in sizes.items())
    return [f"only the first {min(sizes.values())} models of each kind are compared, as one has no more: {held}"]


def _sizes(opened: Opened) -> dict[str, int]:
    pools = opened.pools | {"retrained": retrained_pool(opened.workspace)}
    return {name: len(pool) for name, pool in pools.items()}


def note_reuse(args: argparse.Namespace, method: Method, n_models: int, *pools: ModelPool) -> None:
    """Say on stderr that models of an earlier run are taken."""
    n_kept = sum(n_models - len(pool.missing(n_models)) for pool in pools)
    if n_kept and not (args.quiet or args.json):
        print(f"reusing {n_kept} models of {method.name}", file=sys.stderr)
