"""The command report: pools or archives to HTML pages, one for each method and one that compares them."""

import argparse
from dataclasses import asdict
from pathlib import Path

from kit.errors import InputError
from kit.tools.cli import answer
from local_eval.commands import options as shared
from local_eval.commands.arrays import array_score
from local_eval.commands.pools import keep_scores, open_pools
from local_eval.commands.score_options import spec_of
from local_eval.report.comparison import write_comparison
from local_eval.report.evidence import gather
from local_eval.report.facts import score_options
from local_eval.report.pages import COMPARISON, verdict_lines, write_pages
from local_eval.report.table import row_records
from local_eval.report.verdict import verdict
from local_eval.results import check_files, write_csv


def report(args: argparse.Namespace) -> int:
    """Write the pages. 1 where something was broken or missing: the pages then say what."""
    check_files(args.out, args.csv)
    if args.logits or args.confidences or args.labels:
        return _report_arrays(args)
    if not args.pools:
        raise InputError("report: give the folder of a pool, checkpoints, --logits or --confidences")
    if args.n_models is not None:
        shared.at_least(args.n_models)
    spec, opened = spec_of(args), open_pools(args, tolerant=True)
    if not opened.pools and len(opened.faults) == 1:
        raise InputError(next(iter(opened.faults.values())))
    evidence = gather(
        opened.workspace,
        opened.pools,
        faults=opened.faults,
        n_models=args.n_models,
        spec=spec,
        attacks=args.attacks,
        progress=not args.quiet,
    )
    keep_scores(opened.pools, evidence.rows.values(), score_options(spec, args.attacks))
    several = len(opened.pools) + len(opened.faults) > 1
    pages = write_pages(
        evidence,
        opened.pools,
        opened.archives,
        saliency=not args.no_saliency,
        out=None if several else args.out,
    )
    if several:
        out = args.out or opened.workspace.folder / COMPARISON
        write_comparison(evidence, pages, out, shared.command_line(args))
        pages = {"comparison": out, **pages}
    write_csv(args.csv, row_records(list(evidence.rows.values()), evidence.assessments, args.attacks))
    for page in list(pages.values())[:1]:
        shared.open_page(args, page)
    verdicts = {name: verdict(evidence, name) for name in opened.pools}
    facts = {
        "pages": {name: str(page) for name, page in pages.items()},
        "verdicts": {name: asdict(found) for name, found in verdicts.items()},
        "faults": {name or "setting": fault for name, fault in evidence.faults.items()},
    }
    answer(args, facts, [*verdict_lines(verdicts), *(f"report: {page}" for page in pages.values())])
    return 1 if evidence.faults else 0


def _report_arrays(args: argparse.Namespace) -> int:
    """The page of arrays from elsewhere: table, verdict and what a reader must know."""
    found = array_score(args)
    page = found.save(args.out or Path(f"{found.name}.html"))
    write_csv(args.csv, found.records())
    shared.open_page(args, page)
    answer(args, {"pages": {found.name: str(page)}} | found.facts(), [found.sentences()[0], f"report: {page}"])
    return 0
