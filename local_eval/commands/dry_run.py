"""The command dry-run: execute a notebook or script as if on Kaggle, say what Kaggle would have said, score it."""

import argparse
from pathlib import Path

import nbformat

from kit.budget import parse_duration
from kit.cli import answer, positive_int
from kit.competition import N_CHECKPOINTS
from kit.errors import InputError
from local_eval.commands import options as shared
from local_eval.devices import devices_of
from local_eval.dry_run.judge import dry_run, facts_of, lines_of
from local_eval.dry_run.program import read_program
from local_eval.dry_run.stand_in import EPOCHS, FORGET, N_TRAIN, stand_in

ISOLATION = {"auto": None, "namespaces": True, "hooks": False}


def add(commands: argparse._SubParsersAction) -> None:
    about = "execute a notebook or script as if on Kaggle, check it, score it"
    sub = shared.add_command(commands, "dry-run", execute, about)
    sub.set_defaults(interrupted="the program is ended, models trained for its score are kept")
    sub.add_argument("program", type=Path, help="a notebook (.ipynb) or a script (.py)")
    sub.add_argument("--data", default="synthetic", help="cifar10, image-folder:PATH, synthetic; or an input tree")
    sub.add_argument("--setting", type=Path, help="the folder of an earlier run with resnet18, instead of --data")
    sub.add_argument("--n-models", type=positive_int, default=8, help="checkpoints instead of 512 (8)")
    sub.add_argument("--full", action="store_true", help="all 512")
    sub.add_argument("--timeout", default="30m", help="time after which the program is ended (30m)")
    sub.add_argument("--isolation", choices=ISOLATION, default="auto", help="how /kaggle comes about (what works)")
    sub.add_argument("--no-score", action="store_true", help="the verdict only: no retrained models")
    sub.add_argument("--brief", action="store_true", help="the table of the score only: no intervals")
    sub.add_argument("--keep", type=Path, metavar="FILE.ipynb", help="write the executed notebook there")
    sub.add_argument("--n-train", type=positive_int, default=N_TRAIN, help=f"images of the stand-in ({N_TRAIN})")
    sub.add_argument("--forget", default=FORGET, help=f"forget policy ({FORGET})")
    sub.add_argument("--epochs", type=float, default=EPOCHS, help=f"training epochs of the stand-in ({EPOCHS:g})")
    shared.data_options(sub)
    sub.add_argument("--work-dir", type=Path, default=Path("runs"), help="where stand-in and models are kept (runs)")
    shared.device_options(sub)


def execute(args: argparse.Namespace) -> int:
    program = read_program(args.program)
    n_models = N_CHECKPOINTS if args.full else args.n_models
    if n_models < 2:
        raise InputError(f"--n-models {n_models}: one checkpoint says nothing of the runs after it: take at least 2")
    timeout_s = parse_duration(args.timeout)
    devices = devices_of(args.device, args.slots)
    data = stand_in(
        args.data,
        args.work_dir,
        setting=args.setting,
        n_models=0 if args.no_score else n_models,
        devices=devices,
        progress=not args.quiet,
        n_train=args.n_train,
        forget=args.forget,
        epochs=args.epochs,
        data_root=args.data_root,
        cache_dir=args.cache_dir,
    )
    result = dry_run(
        program,
        data,
        n_models,
        device=args.device,
        timeout_s=timeout_s,
        namespaces=ISOLATION[args.isolation],
        devices=devices,
        score=not args.no_score,
        progress=not args.quiet,
    )
    if args.keep and result.outcome.notebook is not None:
        nbformat.write(result.outcome.notebook, args.keep)
    answer(args, facts_of(result), lines_of(result, brief=args.brief))
    return result.exit_code
