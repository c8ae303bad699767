"""Options that several commands share, and what is read from them."""

import argparse
import math
import shlex
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from data_stubs import SOURCES
from kit.budget import parse_duration
from kit.cli import common, positive_int
from kit.device import choose_device
from kit.errors import InputError
from kit.methods import Method, get_method
from local_eval.devices import begin_processes, devices_of
from local_eval.evaluate import FORMS
from local_eval.metric import BINS, MetricSpec
from local_eval.models import ARCHITECTURES
from local_eval.published import use_published
from local_eval.recipes import RECIPES
from local_eval.setting import Setting, Workspace, open_workspace, reopen

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


def add_command(
    commands: argparse._SubParsersAction, name: str, function: Callable[[argparse.Namespace], int], about: str
) -> argparse.ArgumentParser:
    """A command with the options that all have."""
    sub = common(commands.add_parser(name, help=about, description=about))
    sub.set_defaults(command=function)
    return sub


def setting_options(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("setting")
    group.add_argument("--setting", type=Path, help="the folder of an earlier run, instead of the options below")
    group.add_argument("--like", choices=LIKE, help="the setting that stands for Kaggle's; options below change it")
    group.add_argument("--source", help=f"{', '.join(SOURCES)}; :noise=0.04 behind it flips labels (synthetic)")
    group.add_argument("--size", type=positive_int, help="scale the images of an image-folder to SIZE x SIZE pixels")
    data_options(group)
    group.add_argument("--n-train", type=positive_int, help="training images, a stratified sample (all)")
    group.add_argument("--forget", help=f"forget policy: random:500, class:3, competition ... ({Setting.forget})")
    group.add_argument("--data-seed", type=int, help="of the forget set and the sample (0)")
    group.add_argument("--architecture", help=f"{', '.join(ARCHITECTURES)} ({Setting.architecture})")
    group.add_argument("--recipe", help=f"{', '.join(RECIPES)} ({Setting.recipe})")
    group.add_argument("--epochs", type=float, help="training epochs (the recipe's)")
    group.add_argument("--train-seed", type=int, help="of the original and the retrained models (0)")
    most = Setting.n_retain_sample
    group.add_argument("--n-retain-sample", type=positive_int, help=f"of them models are shown ({most})")
    group.add_argument("--passes", type=positive_int, help="over the data in an epoch of a method (1)")
    group.add_argument("--quick", action="store_true", help="10,000 training images and tinyconv")
    group.add_argument("--work-dir", type=Path, default=Path("runs"), help="where models and pools are kept")
    device_options(sub)


def data_options(group: argparse._ActionsContainer) -> None:
    group.add_argument("--data-root", type=Path, help="where CIFAR-10 or GTSRB is, or is downloaded to")
    group.add_argument("--cache-dir", type=Path, help="where decoded images are kept (the user's cache folder)")


def device_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--device", default="auto", help="cpu, cuda (all GPUs), cuda:1 ... (every GPU, else the CPU)")
    sub.add_argument("--slots", type=positive_int, help="processes a device (one a core; on a GPU the fastest number)")


def method_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--method", default="finetune", help="a name, or file.py[:function]")
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a hyper-parameter")
    sub.add_argument("--seed", type=int, default=0, help="seed of the unlearning runs")


def limit_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--limit", help="time limit of the unlearning, such as 90m; none by default")


def n_models_option(sub: argparse.ArgumentParser, default: int = 64) -> None:
    sub.add_argument("--n-models", type=int, default=default, help=f"retrained and unlearned models ({default})")


def score_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--attacks", choices=FORMS, default="grid", help="grid: as released; exact: the supremum")
    sub.add_argument("--bins", choices=BINS, default="code", help="14 bins at N = 512 (code) or 13 (report)")
    sub.add_argument("--delta", type=float, default=MetricSpec.delta, help="of epsilon (1e-5)")
    sub.add_argument("--cap", type=float, default=MetricSpec.cap, help="the largest epsilon (50)")


def at_least(n_models: int, fewest: int = 2) -> None:
    if n_models < fewest:
        why = "the score compares distributions and needs" if fewest > 1 else "expected are"
        raise InputError(f"--n-models {n_models}: {why} at least {fewest} models")


def method_of(args: argparse.Namespace) -> Method:
    """The method, the only time that its words are read; a mistake in the limit is told as early."""
    args.limit_s = parse_duration(args.limit) if args.limit else math.inf
    return get_method(args.method, args.set)


def spec_of(args: argparse.Namespace) -> MetricSpec:
    """The score's constants; the competition's unless told otherwise."""
    return MetricSpec(delta=args.delta, cap=args.cap, bins=BINS[args.bins])


def workspace_of(args: argparse.Namespace) -> Workspace:
    """The setting of the options, or of the folder given with --setting."""
    begin_processes(devices_of(args.device, args.slots))
    if args.setting:
        return reopen(args.setting, checked=True)
    setting = Setting(**setting_of(args))
    where = {"data_root": args.data_root, "cache_dir": args.cache_dir}
    workspace = open_workspace(setting, args.work_dir, **where, progress=not args.quiet)
    if (n_models := use_published(workspace)) and not (args.quiet or args.json):
        print(f"using the {n_models} retrained models published for this setting", file=sys.stderr)
    return workspace


def setting_of(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a setting: what was given, before what --quick and --like stand for."""
    given = {field.name: getattr(args, field.name) for field in fields(Setting)}
    given = {name: value for name, value in given.items() if value is not None}
    if args.size:
        given["source"] = _scaled(given.get("source", ""), args.size)
    like = dict(LIKE[args.like]) if args.like else {"source": "synthetic"}
    if args.like and choose_device(args.device).type != "cpu":
        like["architecture"] = "resnet18"  # the competition's own, where it can be paid
    return like | (QUICK if args.quick else {}) | given


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
