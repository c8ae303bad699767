"""Options that several commands share, and what is read from them."""

import argparse
import math
import shlex
import sys
from dataclasses import fields
from typing import Any

from data_stubs.splits import Splits
from kit.budget import parse_duration
from kit.device import choose_device
from kit.errors import InputError
from kit.methods import Method, get_method
from local_eval.devices import begin_processes, devices_of
from local_eval.published import use_published
from local_eval.setting import Setting, Workspace, keep_workspace, reopen, splits_of

# What --like competition sets unless told otherwise: the competition's training recipe, forget policy and steps an
# epoch on real subjects, with labels that no net fits completely.
LIKE = {
    "competition": {
        "source": "gtsrb:super:noise=0.04",
        "forget": "competition",
        "architecture": "resnet18_narrow",
        "recipe": "competition",
        "passes": 2,
    }
}
QUICK = {"n_train": 10_000, "architecture": "tinyconv", "epochs": 2.5}  # what --quick sets unless told otherwise


def at_least(n_models: int, fewest: int = 2) -> None:
    if n_models < fewest:
        why = "the score compares distributions and needs" if fewest > 1 else "expected are"
        raise InputError(f"--n-models {n_models}: {why} at least {fewest} models")


def method_of(args: argparse.Namespace) -> Method:
    """The method, the only time that its words are read; a mistake in the limit is told as early."""
    args.limit_s = parse_duration(args.limit) if args.limit else math.inf
    return get_method(args.method, args.set)


def workspace_of(args: argparse.Namespace) -> Workspace:
    """The setting of the options, or of the folder given with --setting."""
    begin_processes(devices_of(args.device, args.slots))
    if args.setting:
        refuse_beside_setting(args)
        return reopen(args.setting, checked=True)
    setting = Setting(**setting_of(args))
    where = {"data_root": args.data_root, "cache_dir": args.cache_dir}
    splits = load_splits(args, setting, **where, progress=not args.quiet)
    workspace = keep_workspace(setting, splits, args.work_dir)
    if (n_models := use_published(workspace)) and not (args.quiet or args.json):
        print(f"using the {n_models} retrained models published for this setting", file=sys.stderr)
    return workspace


def setting_of(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a setting: what was given, before what --quick and --like stand for."""
    given = {field.name: getattr(args, field.name, None) for field in fields(Setting)}
    given = {name: value for name, value in given.items() if value is not None}
    if args.size:
        given["source"] = _scaled(given.get("source", ""), args.size)
    named, quick = getattr(args, "like", None), getattr(args, "quick", False)
    like = dict(LIKE[named]) if named else {"source": "synthetic"}
    if named and choose_device(args.device).type != "cpu":
        like["architecture"] = "resnet18"  # the competition's own, where it can be paid
    return like | (QUICK if quick else {}) | given


def data_words(args: argparse.Namespace) -> list[str]:
    """The options given that make a setting, as they are written."""
    names = [field.name for field in fields(Setting)] + ["size", "like", "quick"]
    return [f"--{name.replace('_', '-')}" for name in names if getattr(args, name, None) not in (None, False)]


def refuse_beside_setting(args: argparse.Namespace) -> None:
    """InputError where options that make a setting stand beside the folder of one."""
    if given := data_words(args):
        raise InputError(
            f"{' '.join(given)} beside --setting {args.setting}: the folder has its own: leave out one or the other"
        )


def load_splits(args: argparse.Namespace, setting: Setting, **options: Any) -> Splits:
    """The setting's data; a forget policy that nobody chose and that does not fit is told as the default."""
    try:
        return splits_of(setting, **options)
    except InputError as error:
        if args.forget is None and str(error).startswith("forget policy"):
            raise InputError(f"{error} ({setting.forget} is the default: choose another with --forget)") from error
        raise


def _scaled(source: str, size: int) -> str:
    kind, _, path = source.partition(":")
    if kind != "image-folder":
        raise InputError(f"--size {size}: scales the images of --source image-folder:PATH alone")
    return f"{kind}@{size}:{path}"


def devices_for(args: argparse.Namespace, workspace: Workspace, n_models: int) -> list[str]:
    """Where so many models are made, an entry a process."""
    return devices_of(args.device, args.slots, workspace, n_models)


def command_line(args: argparse.Namespace) -> str:
    """What was typed, fit to be typed again."""
    return shlex.join(["python", "-m", "local_eval", *args.argv])
