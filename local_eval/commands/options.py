"""Options that several commands share, and what is read from them."""

import argparse
import math
import shlex
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import data_stubs
from data_stubs.splits import Splits
from kit.budget import parse_duration
from kit.device import choose_device
from kit.errors import InputError
from kit.methods import Method
from kit.tools.folder import find_method
from local_eval.commands.parser import N_MODELS
from local_eval.commands.score_options import spec_of
from local_eval.devices import begin_processes, devices_of, hidden_cuda
from local_eval.engines import Cluster, installed_ray
from local_eval.published import use_published
from local_eval.report.facts import score_options
from local_eval.setting import LIKE, Setting, Workspace, keep_workspace, reopen, splits_of

QUICK = {"n_train": 10_000, "architecture": "tinyconv", "epochs": 2.5}  # what --quick sets unless told otherwise


def at_least(n_models: int, fewest: int = 2, option: str = "--n-models") -> None:
    if n_models < fewest:
        why = "the score compares distributions and needs" if fewest > 1 else "expected are"
        raise InputError(f"{option} {n_models}: {why} at least {fewest} models")


def method_of(args: argparse.Namespace) -> Method:
    """The method, the only time that its words are read; a mistake in the limit is told as early."""
    args.limit_s = parse_duration(args.limit) if args.limit else math.inf
    if args.engine == "ray" and args.limit:
        raise InputError("--limit: goes without --engine ray: one plan of steps holds for all models of a limit")
    return read_method(args, args.method, args.set)


def read_method(args: argparse.Namespace, spec: str, settings: Sequence[str] = ()) -> Method:
    """The method of a name; a user's file is run for it, as on the device where its models are made."""
    with hidden_cuda(str(choose_device(args.device))):
        return find_method(spec, settings)


def workspace_of(args: argparse.Namespace) -> Workspace:
    """The setting of the options, or of the folder given with --setting."""
    if args.engine == "ray":
        installed_ray()
    else:
        begin_processes(devices_of(args.device, args.slots))
    if args.setting:
        workspace = reopen(args.setting, checked=True)
        refuse_beside_setting(args, workspace.setting)
        return workspace
    where = {"data_root": args.data_root, "cache_dir": args.cache_dir}
    setting, splits = load_setting(args, **where, progress=not args.quiet)
    workspace = keep_workspace(setting, splits, args.work_dir)
    note_forget(args, setting, splits)
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


def refuse_beside_setting(args: argparse.Namespace, setting: Setting) -> None:
    """InputError where options beside --setting ask for another setting than the folder's."""
    given = setting_of(args)
    if args.source is None and not getattr(args, "like", None):
        del given["source"]
    for name, value in given.items():
        asked = replace(setting, **{name: value})
        if asked != setting and (name != "epochs" or asked.n_epochs != setting.n_epochs):
            held = "the recipe's own" if (held := getattr(setting, name)) is None else held
            raise InputError(
                f"{' '.join(data_words(args))} beside --setting {args.setting}: {name} is {held} there, not {value}: "
                "leave out one or the other"
            )


def load_setting(args: argparse.Namespace, **where: Any) -> tuple[Setting, Splits]:
    """The setting of the options with its data; a forget policy that nobody chose fits the data."""
    given = setting_of(args)
    setting = Setting(**given)
    if "forget" in given:
        return setting, splits_of(setting, **where)
    options = {"n_train": setting.n_train, "seed": setting.data_seed}
    splits, forget = data_stubs.load_by_default(setting.source, **options, **where)
    return replace(setting, forget=forget), splits


def note_forget(args: argparse.Namespace, setting: Setting, splits: Splits) -> None:
    """Say on stderr which forget policy was taken where nobody chose one."""
    if "forget" not in setting_of(args):
        shown = f"{len(splits.forget):,} of {len(splits.train):,} images: --forget chooses another"
        print(f"forget policy {setting.forget}, the default here: {shown}", file=sys.stderr)


def _scaled(source: str, size: int) -> str:
    kind, _, path = source.partition(":")
    if kind != "image-folder":
        raise InputError(f"--size {size}: scales the images of --source image-folder:PATH alone")
    return f"{kind}@{size}:{path}"


def devices_for(args: argparse.Namespace, workspace: Workspace, n_models: int) -> list[str]:
    """Where so many models are made, an entry a process; or a cluster."""
    if args.engine == "ray":
        return Cluster(["cpu"], workspace.folder, args.device, args.slots)
    return devices_of(args.device, args.slots, workspace, n_models)


def go_on(args: argparse.Namespace, workspace: Workspace, settings: Sequence[str]) -> str:
    """The line that tells how `run` takes the best settings of a search, with the options that this command had."""
    words = ["--setting", str(workspace.folder), "--method", args.method]
    words += [word for setting in settings for word in ("--set", setting)]
    words += ["--seed", str(args.seed)] if args.seed else []
    words += ["--n-models", str(args.n_models)] if args.n_models > N_MODELS else []
    words += score_options(spec_of(args), args.attacks) if hasattr(args, "attacks") else []
    words += ["--device", args.device] if args.device != "auto" else []
    words += ["--slots", str(args.slots)] if args.slots else []
    words += ["--engine", args.engine] if args.engine != "processes" else []
    return f"go on: {shlex.join(['python', '-m', 'local_eval', 'run', *words])}"


def open_page(args: argparse.Namespace, page: Path) -> None:
    """Show a page in the browser, where --open asks for it."""
    if args.open and not webbrowser.open(page.resolve().as_uri()):
        print(f"--open: no browser was found: open {page} yourself", file=sys.stderr)


def command_line(args: argparse.Namespace) -> str:
    """What was typed, fit to be typed again."""
    return shlex.join(["python", "-m", "local_eval", *args.argv])
