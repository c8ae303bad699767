"""The command dry-run: execute a notebook or script as if on Kaggle, say what Kaggle would have said, score it."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat

from kit.budget import parse_duration
from kit.competition import INPUT_DIR, N_CHECKPOINTS
from kit.errors import InputError
from kit.tools.cli import answer
from local_eval.commands.parser import STAND_IN
from local_eval.devices import devices_of
from local_eval.dry_run.judge import dry_run, facts_of, lines_of
from local_eval.dry_run.kaggle_image import install, missing_packages
from local_eval.dry_run.program import read_program
from local_eval.dry_run.stand_in import stand_in
from local_eval.results import check_files

ISOLATION = {"auto": None, "namespaces": True, "hooks": False}


def execute(args: argparse.Namespace) -> int:
    program = read_program(args.program)
    n_models = N_CHECKPOINTS if args.full else args.n_models
    if n_models < 2:
        raise InputError(f"--n-models {n_models}: one checkpoint says nothing of the runs after it: take at least 2")
    timeout_s, inputs = parse_duration(args.timeout), inputs_of(args.input)
    if args.keep and program.notebook is None:
        raise InputError(f"--keep {args.keep}: {args.program} is no notebook: leave it out")
    check_files(args.keep)
    if args.install_kaggle_packages and (missing := missing_packages(program)):
        install(missing)
    own = {name: value for name in STAND_IN if (value := getattr(args, name)) is not None}
    if args.setting and own:
        words = " ".join(f"--{name.replace('_', '-')}" for name in own)
        raise InputError(
            f"{words} beside --setting {args.setting}: the data is that setting's: leave out one or the other"
        )
    devices = devices_of(args.device, args.slots)
    data = stand_in(
        own.pop("data", STAND_IN["data"]),
        args.work_dir,
        setting=args.setting,
        n_models=0 if args.no_score else n_models,
        devices=devices,
        progress=not args.quiet,
        **own,
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
        inputs=inputs,
        devices=devices,
        score=not args.no_score,
        progress=not args.quiet,
    )
    if args.keep and result.outcome.notebook is not None:
        nbformat.write(result.outcome.notebook, args.keep)
    answer(args, facts_of(result), lines_of(result, brief=args.brief))
    return result.exit_code


def inputs_of(options: Sequence[str]) -> dict[str, Path]:
    """Folders by the name that they have in /kaggle/input, of texts NAME=FOLDER."""
    found: dict[str, Path] = {}
    for option in options:
        name, _, folder = option.partition("=")
        if not folder or not re.fullmatch(r"\w[\w.-]*", name):
            raise InputError(f"--input {option}: expected NAME=FOLDER, NAME as it stands in /kaggle/input/NAME")
        if name in found or name == INPUT_DIR.name:
            raise InputError(f"--input {option}: /kaggle/input/{name} is there already: give another name")
        if not Path(folder).is_dir():
            raise InputError(f"--input {option}: {folder} is no folder: give one with the files of {name}")
        found[name] = Path(folder)
    return found
