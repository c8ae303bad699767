"""Command line of the kit: python -m kit {emit, profile, verify, methods}."""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from kit.budget import TimeBudget, format_duration, parse_duration
from kit.cli import answer, common, positive_int, run
from kit.competition import (
    INPUT_DIR,
    N_CHECKPOINTS,
    WORKING_DIR,
    Loaders,
    load_original,
    load_state,
    read_tree,
    resnet18,
)
from kit.emit import emit
from kit.errors import InputError
from kit.methods import Method, get_method, load_file, method_names
from kit.preflight import choose_device
from kit.profile import profile
from kit.submission import verdict_lines, verify

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def architecture(spec: str) -> Callable[[], nn.Module]:
    """The function that builds an untrained net: resnet18, or `file.py:function` of one's own."""
    if spec == "resnet18":
        return resnet18
    path, _, name = spec.partition(":")
    if not path.endswith(".py") or not name:
        raise InputError(f"--architecture {spec}: expected resnet18 or file.py:function")
    function = getattr(load_file(Path(path)), name, None)
    if not callable(function):
        raise InputError(f"--architecture {spec}: {path} defines no function {name}")
    return function


def _prepare(args: argparse.Namespace) -> tuple[Method, nn.Module, Loaders]:
    """Method, model and loaders of a command, cheapest mistake first."""
    method = get_method(args.method, args.set)
    device = choose_device(args.device)
    model = load_original(args.input, architecture(args.architecture)).to(device)
    where = device if method.anytime else "cpu"
    loaders = read_tree(args.input, args.batch_size, loader=method.loader, device=where, progress=not args.quiet)
    return method, model, loaders


def _emit(args: argparse.Namespace) -> int:
    budget = TimeBudget(args.limit)
    method, model, loaders = _prepare(args)
    result = emit(
        method,
        model,
        loaders,
        out=args.out,
        n_checkpoints=args.n_models,
        budget=budget,
        seed=args.seed,
        dtype=DTYPES.get(args.dtype),
        fill=args.fill,
        progress=not args.quiet,
    )
    facts = {
        "archive": str(result.archive),
        "ok": all(check.ok for check in result.checks),
        "checks": [asdict(check) for check in result.checks],
        "seconds": result.seconds,
        "checkpoint_s": statistics.fmean(result.checkpoint_s),
        "steps": result.steps,
    }
    steps = f", {result.steps} steps each" if result.steps is not None else ""
    last = (
        f"{args.n_models} checkpoints in {format_duration(result.seconds)} of {format_duration(budget.limit_s)} "
        f"({format_duration(facts['checkpoint_s'])} each{steps}): {result.archive}"
    )
    answer(args, facts, [*verdict_lines(result.checks), last])
    return 0 if facts["ok"] else 1


def _profile(args: argparse.Namespace) -> int:
    method, model, loaders = _prepare(args)
    result = profile(
        method,
        model,
        loaders,
        n_measured=args.measure,
        n_checkpoints=args.n_models,
        limit_s=parse_duration(args.limit),
        dtype=DTYPES.get(args.dtype),
        seed=args.seed,
        progress=not args.quiet,
    )
    facts = {**asdict(result), "fits": result.fits, "n_fit": result.n_fit}
    answer(args, facts, result.lines())
    return 0 if result.fits else 1


def _verify(args: argparse.Namespace) -> int:
    net = architecture(args.architecture)()
    model = load_state(args.original, net) if args.original else net
    checks = verify(args.archive, args.n_models, model.state_dict(), progress=not args.quiet)
    ok = all(check.ok for check in checks)
    answer(args, {"ok": ok, "checks": [asdict(check) for check in checks]}, verdict_lines(checks))
    return 0 if ok else 1


def _methods(args: argparse.Namespace) -> int:
    names = [args.name] if args.name else method_names()
    methods = {name: get_method(name) for name in names}
    facts = {
        name: {
            "summary": _summary(method),
            "hyper_parameters": dict(method.defaults),
            "anytime": method.anytime,
        }
        for name, method in methods.items()
    }
    lines = []
    for name, method in methods.items():
        lines.append(f"{name:<22}{_summary(method)}")
        if args.name:
            lines += [f"    {key} = {value!r}" for key, value in method.defaults.items()]
    answer(args, facts, lines)
    return 0


def _summary(method: Method) -> str:
    doc = sys.modules[method.function.__module__].__doc__ or method.function.__doc__ or ""
    return doc.strip().split("\n\n")[0].replace("\n", " ")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kit", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        sub = common(commands.add_parser(name, help=about, description=about))
        sub.set_defaults(command=function)
        return sub

    def method_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--input", type=Path, default=INPUT_DIR, help="the competition's input tree")
        sub.add_argument("--method", default="finetune", help="a name, or file.py[:function]")
        sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a hyper-parameter")
        sub.add_argument("--n-models", type=positive_int, default=N_CHECKPOINTS, help="checkpoints (512)")
        sub.add_argument("--limit", default="8h", help="time limit for everything, such as 8h, 90m or 120s")
        sub.add_argument("--seed", type=int, default=0)
        sub.add_argument("--dtype", choices=DTYPES, help="type of the stored weights (the model's own)")
        sub.add_argument("--device", default="auto")
        sub.add_argument("--batch-size", type=positive_int, default=64)
        sub.add_argument("--architecture", default="resnet18", help="resnet18, or file.py:function that builds a net")

    sub = command("emit", _emit, "write N unlearned checkpoints into submission.zip inside a time limit")
    method_options(sub)
    sub.add_argument("--out", type=Path, default=WORKING_DIR, help="folder of archive and ledger")
    sub.add_argument("--fill", action="store_true", help="use the whole limit, with more steps than the method wants")

    sub = command("profile", _profile, "time a few checkpoints phase by phase; exit code 0 where N fit the limit")
    method_options(sub)
    sub.add_argument("--measure", type=positive_int, default=3, metavar="K", help="checkpoints to time (3)")

    sub = command("verify", _verify, "check an archive; exit code 0 where every check holds")
    sub.add_argument("archive", type=Path)
    sub.add_argument("--n-models", type=positive_int, default=N_CHECKPOINTS, help="checkpoints expected (512)")
    sub.add_argument("--original", type=Path, help="original_model.pth, to tell copies of it")
    sub.add_argument("--architecture", default="resnet18", help="resnet18, or file.py:function that builds a net")

    sub = command("methods", _methods, "list the methods, or one with its hyper-parameters")
    sub.add_argument("name", nargs="?")
    return parser


def main(argv: list[str] | None = None) -> int:
    return run(_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
