"""The command run: original model, retrained models, unlearned models, score, report."""

import argparse
import shlex
import time
from collections import Counter
from dataclasses import asdict

from kit.budget import format_duration
from kit.tools.cli import answer
from local_eval.commands import options as shared
from local_eval.commands.pools import begun, note_retrained
from local_eval.commands.score_options import spec_of
from local_eval.distances import distances
from local_eval.engines import Cluster
from local_eval.evaluate import evaluate, read_samples
from local_eval.metric import FORMS
from local_eval.report.facts import score_options
from local_eval.report.notes import notes_on
from local_eval.report.pages import report_of, verdict_lines
from local_eval.report.table import aligned, distance_table, row_records, table_of
from local_eval.report.write import facts_of, write_report
from local_eval.results import check_files, write_csv
from local_eval.retrained import fill_retrained
from local_eval.unlearned import fill_unlearned, limit_notes


def run(args: argparse.Namespace) -> int:
    shared.at_least(args.n_models)
    method, spec = shared.method_of(args), spec_of(args)
    check_files(args.csv)
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def lap(phase: str) -> None:
        seconds[phase] = time.perf_counter() - start - sum(seconds.values())

    workspace = shared.workspace_of(args)
    note_retrained(workspace, args.n_models)
    begun(args, workspace, method, args.limit_s)
    devices = shared.devices_for(args, workspace, args.n_models)
    common = {"devices": devices, "progress": not args.quiet}
    lap("data")
    fill_retrained(workspace, args.n_models, **common)
    lap("train and retrain")
    pool = fill_unlearned(workspace, method, args.n_models, seed=args.seed, limit=args.limit_s, **common)
    lap("unlearn")
    pools = {method.name: pool}
    samples = read_samples(workspace, pools, args.n_models)
    rows, distance = evaluate(samples, spec, FORMS[args.attacks]), distances(samples)
    lap("score")
    phases = ", ".join(f"{phase} {format_duration(s)}" for phase, s in seconds.items())
    processes = ", ".join(f"{device} x {slots}" for device, slots in Counter(devices).items())
    processes = devices.text if isinstance(devices, Cluster) else processes
    took = f"{format_duration(sum(seconds.values()))} in all: {phases}; processes: {processes}"
    notes = [*limit_notes(pools), *notes_on(rows), took]
    further = {"command": shared.command_line(args), "attacks": args.attacks, "seconds": seconds}
    further["score_options"] = score_options(spec, args.attacks)
    facts = facts_of(workspace, rows, pools, distance, **further)
    write_csv(args.csv, row_records(rows, {}, args.attacks))
    tables = [table_of(rows), distance_table(rows, distance)]
    paths = write_report(pool.folder, facts, tables, notes)
    text = [line for table in tables for line in (*aligned(table), "")]
    verdict = []
    if not args.no_page:
        options = {"spec": spec, "attacks": args.attacks, "progress": not args.quiet}
        page, found = report_of(workspace, method.name, pool, args.n_models, **options)
        shared.open_page(args, page)
        facts, paths = facts | {"page": str(page), "verdict": asdict(found)}, [*paths, page]
        verdict = ["", *verdict_lines({method.name: found}), ""]
    words = ["python", "-m", "local_eval", "score", str(pool.folder), *score_options(spec, args.attacks)]
    more = f"intervals, null, other measures: {shlex.join(words)}"
    answer(args, facts, [*text, *notes, *verdict, "report: " + ", ".join(map(str, paths)), more])
    return 0
