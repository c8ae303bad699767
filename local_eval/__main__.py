"""Command line of the local evaluation: python -m local_eval {run, sweep, score, compare, ...}, see --help."""

import argparse
import math
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from data_stubs.kaggle_tree import write_tree
from kit.budget import format_duration, parse_duration
from kit.cli import answer, common, positive_int, run
from kit.methods import Method, get_method
from kit.workers import n_cores
from local_eval.distances import distances
from local_eval.dry_run.command import dry_run_command, dry_run_options
from local_eval.engine import warm_up
from local_eval.evaluate import FORMS, evaluate, read_samples
from local_eval.metric import MetricSpec
from local_eval.pool import ModelPool
from local_eval.report.notes import notes_on
from local_eval.report.table import aligned, distance_table, table_of
from local_eval.report.write import facts_of, write_report
from local_eval.report_command import report_command, report_of, verdict_lines
from local_eval.retrained import fill_retrained
from local_eval.score_command import BINS, at_least_two, compare_command, score_command, spec_of
from local_eval.setting import Setting, Workspace, open_workspace, reopen
from local_eval.sweep import CRITERIA
from local_eval.sweep_command import sweep_command
from local_eval.unlearned import fill_unlearned

SIZES = {  # what --quick sets unless told otherwise
    False: {"n_train": None, "architecture": "smallconv", "epochs": None},
    True: {"n_train": 10_000, "architecture": "tinyconv", "epochs": 2.5},
}


def _workspace(args: argparse.Namespace) -> Workspace:
    """The setting of the options, or of the folder given with --setting."""
    if _workers(args) > 1:
        warm_up()
    if args.setting:
        return reopen(args.setting)
    size = SIZES[args.quick]
    setting = Setting(
        source=args.source,
        forget=args.forget,
        n_train=size["n_train"] if args.n_train is None else args.n_train,
        data_seed=args.data_seed,
        architecture=args.architecture or size["architecture"],
        recipe=args.recipe,
        epochs=size["epochs"] if args.epochs is None else args.epochs,
        train_seed=args.train_seed,
    )
    return open_workspace(
        setting, args.work_dir, data_root=args.data_root, cache_dir=args.cache_dir, progress=not args.quiet
    )


def _workers(args: argparse.Namespace) -> int:
    return args.workers or n_cores()


def _train(args: argparse.Namespace) -> int:
    workspace = _workspace(args)
    fill_retrained(workspace, 0, workers=1, progress=not args.quiet)
    answer(args, {"original_model": str(workspace.original_path)}, [f"original model: {workspace.original_path}"])
    return 0


def _retrain(args: argparse.Namespace) -> int:
    workspace = _workspace(args)
    pool = fill_retrained(workspace, args.n_models, workers=_workers(args), progress=not args.quiet)
    answer(args, {"pool": str(pool.folder)}, [f"{args.n_models} retrained models: {pool.folder}"])
    return 0


def _unlearn(args: argparse.Namespace) -> int:
    method = _method(args)
    pool = _unlearned(_workspace(args), args)
    answer(args, {"pool": str(pool.folder)}, [f"{args.n_models} models of {method.name}: {pool.folder}"])
    return 0


def _method(args: argparse.Namespace) -> Method:
    """The method and the time limit of the options: their mistakes are told before anything is loaded."""
    args.limit_s = parse_duration(args.limit) if args.limit else math.inf
    return get_method(args.method, args.set)


def _unlearned(workspace: Workspace, args: argparse.Namespace) -> ModelPool:
    return fill_unlearned(
        workspace,
        args.method,
        args.n_models,
        settings=args.set,
        seed=args.seed,
        limit=args.limit_s,
        workers=_workers(args),
        progress=not args.quiet,
    )


def _run(args: argparse.Namespace) -> int:
    """Original model, retrained models, unlearned models, score, report."""
    at_least_two(args.n_models)
    method = _method(args)
    seconds = {}
    start = time.perf_counter()

    def lap(phase: str) -> None:
        seconds[phase] = time.perf_counter() - start - sum(seconds.values())

    workspace = _workspace(args)
    lap("data")
    fill_retrained(workspace, args.n_models, workers=_workers(args), progress=not args.quiet)
    lap("train and retrain")
    pool = _unlearned(workspace, args)
    lap("unlearn")
    samples = read_samples(workspace, {method.name: pool}, args.n_models)
    rows, distance = evaluate(samples, spec_of(args), FORMS[args.attacks]), distances(samples)
    lap("score")
    phases = ", ".join(f"{phase} {format_duration(s)}" for phase, s in seconds.items())
    took = f"{format_duration(sum(seconds.values()))} in all: {phases}; {_workers(args)} processes"
    notes = [*notes_on(rows), took]
    facts = facts_of(workspace, rows, {method.name: pool}, distance, attacks=args.attacks, seconds=seconds)
    tables = [table_of(rows), distance_table(rows, distance)]
    paths = write_report(pool.folder, facts, tables, notes)
    text = [line for table in tables for line in (*aligned(table), "")]
    verdict = []
    if not args.no_page:
        options = {"spec": spec_of(args), "attacks": args.attacks, "progress": not args.quiet}
        page, found = report_of(workspace, method.name, pool, args.n_models, **options)
        facts, paths = facts | {"page": str(page), "verdict": asdict(found)}, [*paths, page]
        verdict = ["", *verdict_lines({method.name: found}), ""]
    further = f"intervals, null, other measures: python -m local_eval score {pool.folder}"
    answer(args, facts, [*text, *notes, *verdict, "report: " + ", ".join(map(str, paths)), further])
    return 0


def _tree(args: argparse.Namespace) -> int:
    """The setting's data and its original model as the competition's input tree."""
    workspace = _workspace(args)
    fill_retrained(workspace, 0, workers=1, progress=not args.quiet)
    root = write_tree(workspace.splits, workspace.original().state_dict(), args.out)
    answer(args, {"tree": str(root)}, [f"input tree: {root}"])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m local_eval", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, about: str) -> argparse.ArgumentParser:
        sub = common(commands.add_parser(name, help=about, description=about))
        sub.set_defaults(command=function)
        return sub

    def setting_options(sub: argparse.ArgumentParser) -> None:
        group = sub.add_argument_group("setting")
        group.add_argument("--setting", type=Path, help="the folder of an earlier run, instead of the options below")
        group.add_argument("--source", default="synthetic", help="cifar10, image-folder:PATH, digits or synthetic")
        group.add_argument("--data-root", type=Path, help="where CIFAR-10 is, or is downloaded to")
        group.add_argument("--cache-dir", type=Path, help="where decoded images are kept (the user's cache folder)")
        group.add_argument("--n-train", type=positive_int, help="training images, a stratified sample (all)")
        group.add_argument("--forget", default="random:500", help="forget policy: random:500, class:3, competition ...")
        group.add_argument("--data-seed", type=int, default=0)
        group.add_argument("--architecture", help="smallconv, tinyconv, resnet18 or resnet20")
        group.add_argument("--recipe", default="fast", help="fast, sgd or competition")
        group.add_argument("--epochs", type=float, help="training epochs (the recipe's)")
        group.add_argument("--train-seed", type=int, default=0)
        group.add_argument("--quick", action="store_true", help="10,000 training images and tinyconv")
        group.add_argument("--work-dir", type=Path, default=Path("runs"), help="where models and pools are kept")
        sub.add_argument("--workers", type=positive_int, help="processes of one thread each (one per core)")

    def method_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--method", default="finetune", help="a name, or file.py[:function]")
        sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a hyper-parameter")
        sub.add_argument("--seed", type=int, default=0, help="seed of the unlearning runs")

    def limit(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--limit", help="time limit of the unlearning, such as 90m; none by default")

    def pool_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("pools", nargs="*", type=Path, help="folders of unlearned pools, or archives of checkpoints")
        sub.add_argument("--setting", type=Path, help="the folder of a run's setting, needed for archives alone")
        sub.add_argument("--n-models", type=int, help="of each pool (as many as all have)")
        sub.add_argument("--brief", action="store_true", help="the table only: no intervals, null, diagnosis")
        sub.add_argument("--workers", type=positive_int, help="processes that read archives (one per core)")
        score_options(sub)

    def score_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--attacks", choices=FORMS, default="grid", help="grid: as released; exact: the supremum")
        sub.add_argument("--bins", choices=BINS, default="code", help="14 bins at N = 512 (code) or 13 (report)")
        sub.add_argument("--delta", type=float, default=MetricSpec.delta, help="of epsilon (1e-5)")
        sub.add_argument("--cap", type=float, default=MetricSpec.cap, help="the largest epsilon (50)")

    def n_models(sub: argparse.ArgumentParser, default: int = 64) -> None:
        sub.add_argument("--n-models", type=int, default=default, help=f"retrained and unlearned models ({default})")

    sub = command("run", _run, "everything: original, retrained and unlearned models, score, report")
    setting_options(sub)
    method_options(sub)
    limit(sub)
    score_options(sub)
    n_models(sub)
    sub.add_argument("--no-page", action="store_true", help="no report.html, which takes intervals and two more models")

    sub = command(
        "sweep",
        partial(sweep_command, workspace_of=_workspace),
        "one method at several values: --set alpha=0.1,1,10; several such options give the grid",
    )
    setting_options(sub)
    method_options(sub)
    score_options(sub)
    n_models(sub, default=8)
    sub.add_argument("--best-by", choices=CRITERIA, default="accuracy", help="what the best point is chosen by")

    sub = command("train", _train, "train the original model")
    setting_options(sub)

    sub = command("retrain", _retrain, "train N models without the forget set (and the original)")
    setting_options(sub)
    n_models(sub)

    sub = command("unlearn", _unlearn, "make N unlearned models of a method")
    setting_options(sub)
    method_options(sub)
    limit(sub)
    n_models(sub)

    sub = command("tree", _tree, "write the data and a trained original model as the competition's input tree")
    setting_options(sub)
    sub.add_argument("--out", type=Path, required=True, help="folder to write, new or such a tree")

    sub = command("score", score_command, "score pools, an archive of checkpoints, or confidences from anywhere")
    pool_options(sub)
    sub.add_argument("--confidences", type=Path, metavar="FILE.npz", help="unlearned_confidence, retrained_confidence")

    sub = command("compare", compare_command, "compare pools or archives of one setting, two or more")
    pool_options(sub)

    sub = command("report", report_command, "HTML pages: one for each pool or archive; of several, a comparison too")
    sub.add_argument("pools", nargs="+", type=Path, help="folders of unlearned pools, or archives of checkpoints")
    sub.add_argument("--setting", type=Path, help="the folder of a run's setting, needed for archives alone")
    sub.add_argument("--n-models", type=int, help="of each pool (as many as all have)")
    sub.add_argument("--out", type=Path, help="where the page, or the comparison, goes (beside the pools)")
    sub.add_argument("--no-saliency", action="store_true", help="no activation maps, for which two models are made")
    sub.add_argument("--workers", type=positive_int, help="processes that read archives (one per core)")
    score_options(sub)

    sub = command("dry-run", dry_run_command, "execute a notebook or script as if on Kaggle, check it, score it")
    dry_run_options(sub)
    return parser


def main(argv: list[str] | None = None) -> int:
    return run(_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
