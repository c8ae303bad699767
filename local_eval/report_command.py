"""The command report: pools or archives to HTML pages, one for each method and one that compares them."""

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from kit.cli import answer
from kit.errors import InputError
from kit.workers import n_cores
from local_eval.archived import fill_from_archive
from local_eval.pool import ModelPool, write_atomically
from local_eval.report.comparison import comparison_page
from local_eval.report.evidence import Evidence, gather
from local_eval.report.page import evaluation_page
from local_eval.report.saliency import Nets, nets_of
from local_eval.report.verdict import Verdict, verdict
from local_eval.score_command import spec_of
from local_eval.setting import Workspace, reopen

PAGE, COMPARISON = "report.html", "comparison.html"


def report_command(args: argparse.Namespace) -> int:
    """Write the pages. 1 where something was broken or missing: the pages then say what."""
    if args.n_models is not None and args.n_models < 2:
        raise InputError(f"--n-models {args.n_models}: the score compares distributions and needs at least 2 models")
    workspace = _workspace(args.pools, args.setting)
    pools, faults, archives = _open(args, workspace)
    if not pools and len(args.pools) == 1:
        raise InputError(next(iter(faults.values())))
    evidence = gather(
        workspace,
        pools,
        faults=faults,
        n_models=args.n_models,
        spec=spec_of(args),
        attacks=args.attacks,
        progress=not args.quiet,
    )
    several = len(args.pools) > 1
    pages = write_pages(
        evidence,
        pools,
        archives,
        saliency=not args.no_saliency,
        out=None if several else args.out,
    )
    if several:
        out = args.out or workspace.folder / COMPARISON
        links = {name: Path(os.path.relpath(page, out.resolve().parent)).as_posix() for name, page in pages.items()}
        _write(out, comparison_page(evidence, links, _command(args)))
        pages = {"comparison": out, **pages}
    verdicts = {name: verdict(evidence, name) for name in pools}
    facts = {
        "pages": {name: str(page) for name, page in pages.items()},
        "verdicts": {name: asdict(found) for name, found in verdicts.items()},
        "faults": {name or "setting": fault for name, fault in evidence.faults.items()},
    }
    answer(args, facts, [*verdict_lines(verdicts), *(f"report: {page}" for page in pages.values())])
    return 1 if evidence.faults else 0


def report_of(workspace: Workspace, name: str, pool: ModelPool, n_models: int, **options: Any) -> tuple[Path, Verdict]:
    """The page of one pool, written beside its models, and its verdict; options as `gather` takes them."""
    evidence = gather(workspace, {name: pool}, n_models=n_models, **options)
    return write_pages(evidence, {name: pool}, {})[name], verdict(evidence, name)


def write_pages(
    evidence: Evidence,
    pools: Mapping[str, ModelPool],
    archives: Mapping[str, Path],
    *,
    saliency: bool = True,
    out: Path | None = None,
) -> dict[str, Path]:
    """The page of each pool that could be opened, in its folder (the only one at `out`, if given): name -> file."""
    pages, retrained = {}, None
    for name, pool in pools.items():
        nets = _nets(evidence, name, archives.get(name), retrained) if saliency and name in evidence.rows else None
        retrained = nets.nets.get("retrained") if nets else retrained
        pages[name] = out or pool.folder / PAGE
        _write(pages[name], evaluation_page(evidence, name, archives.get(name), nets))
    return pages


def verdict_lines(verdicts: Mapping[str, Verdict]) -> list[str]:
    lines = []
    for name, found in verdicts.items():
        lines.append(f"{name}: {found.headline}")
        if found.upload is None or not found.fault:
            lines += [f"  {reason}" for reason in found.reasons[:1]]
        if found.fault:
            lines.append(f"  {found.fault}")
    return lines


def _nets(evidence: Evidence, name: str, archive: Path | None, retrained: nn.Module | None) -> Nets:
    samples = evidence.samples
    seconds = float(samples.methods[name].seconds.mean()), float(samples.retrained.seconds.mean())
    return nets_of(evidence.workspace, evidence.pools[name], *seconds, archive=archive, retrained=retrained)


def _workspace(paths: Sequence[Path], setting: Path | None) -> Workspace:
    folders = [path.resolve().parent for path in paths if path.suffix != ".zip"]
    if setting is None and not folders:
        raise InputError("report: an archive needs --setting FOLDER: the folder of a run with retrained models")
    return reopen(setting or next((f for f in folders if (f / "setting.json").exists()), folders[0]))


def _open(
    args: argparse.Namespace, workspace: Workspace
) -> tuple[dict[str, ModelPool], dict[str, str], dict[str, Path]]:
    """The pools that can be opened, by name; what is wrong with the others; the archives that pools came from."""
    opened: list[tuple[Path, ModelPool]] = []
    faults = {}
    for path in args.pools:
        try:
            opened.append((path, _pool(path, workspace, args)))
        except InputError as error:
            faults[path.stem or str(path)] = str(error)
    names = names_of([pool for _, pool in opened])
    archives = {name: path for name, (path, _) in zip(names, opened, strict=True) if path.suffix == ".zip"}
    return {name: pool for name, (_, pool) in zip(names, opened, strict=True)}, faults, archives


def _pool(path: Path, workspace: Workspace, args: argparse.Namespace) -> ModelPool:
    if not path.exists():
        raise InputError(f"{path}: does not exist: run the step that makes it, or mend the name")
    if path.suffix == ".zip":
        return fill_from_archive(workspace, path, workers=args.workers or n_cores(), progress=not args.quiet)
    return ModelPool.open(path)


def names_of(pools: Sequence[ModelPool]) -> list[str]:
    """The methods' names; of pools of one method with the hyper-parameters that differ, else with the folder's."""
    names = [pool.identity.get("method", pool.folder.name) for pool in pools]
    told = []
    for name, pool in zip(names, pools, strict=True):
        twins = [other for other, its in zip(pools, names, strict=True) if its == name]
        hyper = pool.identity.get("hyper", {})
        differing = [key for key in hyper if len({t.identity.get("hyper", {}).get(key) for t in twins}) > 1]
        told.append(name + "".join(f" {key}={hyper[key]}" for key in differing))
    return [name if told.count(name) == 1 else pool.folder.name for name, pool in zip(told, pools, strict=True)]


def _command(args: argparse.Namespace) -> str:
    words = ["python", "-m", "local_eval", "report", *map(str, args.pools)]
    for option, value in (("--setting", args.setting), ("--n-models", args.n_models)):
        words += [option, str(value)] if value is not None else []
    words += ["--attacks", args.attacks] if args.attacks != "grid" else []
    return shlex.join(words)


def _write(path: Path, page: str) -> None:
    write_atomically(path, page.encode())
