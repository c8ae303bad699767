"""The pages of pools as files, and their verdicts as lines for the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kit.ledger import write_atomically
from local_eval.pool import ModelPool
from local_eval.report.evidence import Evidence, gather
from local_eval.report.page import evaluation_page
from local_eval.report.saliency import nets_of
from local_eval.report.verdict import Verdict, verdict
from local_eval.retrained import retrained_pool
from local_eval.setting import Workspace

PAGE, COMPARISON = "report.html", "comparison.html"


def report_of(workspace: Workspace, name: str, pool: ModelPool, n_models: int, **options: Any) -> tuple[Path, Verdict]:
    """The page of one pool, written beside its models, and its verdict; options as `gather` takes them."""
    evidence = gather(workspace, {name: pool}, n_models=n_models, **options)
    return write_pages(evidence, {name: pool}, {})[name], verdict(evidence, name)


def write_pages(
    compared: Evidence,
    pools: Mapping[str, ModelPool],
    archives: Mapping[str, Path],
    *,
    saliency: bool = True,
    out: Path | None = None,
) -> dict[str, Path]:
    """The page of each pool that could be opened, in its folder (the only one at `out`, if given): name -> file.

    Among several, each has all its models on its own page, however few the comparison counts of each kind.
    """
    pages = {}
    for name, pool in pools.items():
        evidence, nets = _of_one(compared, name, pool) if len(pools) > 1 else compared, None
        if saliency and name in evidence.rows:
            nets = nets_of(evidence.workspace, pool)
        pages[name] = out or pool.folder / PAGE
        write_atomically(pages[name], evaluation_page(evidence, name, archives.get(name), nets).encode())
    return pages


def _of_one(compared: Evidence, name: str, pool: ModelPool) -> Evidence:
    """The evidence of one pool alone, where it has more models than are compared."""
    workspace = compared.workspace
    if name not in compared.rows or min(len(pool), len(retrained_pool(workspace))) <= compared.samples.n_models:
        return compared
    return gather(workspace, {name: pool}, spec=compared.spec, attacks=compared.attacks)


def verdict_lines(verdicts: Mapping[str, Verdict]) -> list[str]:
    lines = []
    for name, found in verdicts.items():
        lines.append(f"{name}: {found.headline}")
        if found.upload is None or not found.fault:
            lines += [f"  {reason}" for reason in found.reasons[:1]]
        if found.fault:
            lines.append(f"  {found.fault}")
        lines.append(f"  go on: {found.command}")
    return lines
