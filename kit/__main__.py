"""Command line of the kit: python -m kit {emit, profile, verify, methods}."""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kit.archive import verdict_lines
from kit.budget import TimeBudget, parse_duration
from kit.cli import NOTHING_LEFT, answer, common, positive_int, process_age_s, run
from kit.competition import INPUT_DIR, N_CHECKPOINTS, WORKING_DIR, load_state
from kit.device import accelerators, choose_device, keep_freed_memory, n_cores
from kit.emit import Problem, emit
from kit.jobs import warm_up
from kit.methods import Method, get_method, method_names
from kit.profile import profile
from kit.submission import verify
from kit.submit import build_net, read_problem

_WORTH_STARTING = 8  # checkpoints, from which on it pays to start a process a core
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def devices_of(args: argparse.Namespace) -> list[str]:
    """Where checkpoints are made, an entry a process: --slots on the device, or on every GPU."""
    device = choose_device(args.device)
    if device.type == "cpu":
        return ["cpu"] * (args.slots or (n_cores() if args.n_models >= _WORTH_STARTING else 1))
    return (accelerators() if str(device) == "cuda" else [str(device)]) * (args.slots or 1)


def _problem(args: argparse.Namespace, method: Method, **options: Any) -> Problem:
    """What reads model and loaders for a device."""
    architecture = partial(build_net, args.architecture)
    return partial(read_problem, args.input, method, architecture=architecture, batch_size=args.batch_size, **options)


def _emit(args: argparse.Namespace) -> int:
    budget = TimeBudget(args.limit, spent_s=args.spent_s)
    devices = devices_of(args)
    method = get_method(args.method, args.set)
    if len(devices) > 1:
        warm_up()
    result = emit(
        method,
        *_problem(args, method, progress=not args.quiet)(devices[0] if len(devices) == 1 else "cpu"),
        out=args.out,
        work=args.work,
        n_checkpoints=args.n_models,
        budget=budget,
        seed=args.seed,
        dtype=DTYPES.get(args.dtype),
        fill=args.fill,
        devices=devices,
        problem=_problem(args, method, progress=False),
        progress=not args.quiet,
    )
    facts = {
        "archive": str(result.archive),
        "ok": all(check.ok for check in result.checks),
        "checks": [asdict(check) for check in result.checks],
        "seconds": result.seconds,
        "checkpoint_s": statistics.fmean(result.checkpoint_s),
        "steps": result.steps,
        "stood_in": len(result.reasons),
    }
    last = f"{result.summary(budget.limit_s)}: {result.archive}"
    answer(args, facts, [*verdict_lines(result.checks), last])
    return 0 if facts["ok"] else 1


def _profile(args: argparse.Namespace) -> int:
    limit_s = parse_duration(args.limit)
    start = time.perf_counter()
    method, devices = get_method(args.method, args.set), devices_of(args)
    result = profile(
        method,
        *_problem(args, method, progress=not args.quiet)(devices[0]),
        n_measured=args.measure,
        n_checkpoints=args.n_models,
        limit_s=limit_s,
        dtype=DTYPES.get(args.dtype),
        seed=args.seed,
        load_s=time.perf_counter() - start + args.spent_s,
        out=args.out,
        n_parallel=len(devices),
        progress=not args.quiet,
    )
    projected = {"projected_s": result.project(), "uncertainty_s": result.uncertainty_s, "fits": result.fits}
    answer(args, asdict(result) | projected | {"elsewhere": result.elsewhere()}, result.lines())
    return 0 if result.fits else 1


def _verify(args: argparse.Namespace) -> int:
    net = build_net(args.architecture)
    model, known = load_state(args.original, net) if args.original else net, args.original is not None
    checks = verify(args.archive, args.n_models, model.state_dict(), is_original=known, progress=not args.quiet)
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
        if args.name:
            lines += [_doc(method), "", *(f"    {key} = {value!r}" for key, value in method.defaults.items())]
        else:
            lines.append(f"{name:<22}{_summary(method)}")
    answer(args, facts, lines)
    return 0


def _doc(method: Method) -> str:
    """What the method's file says of it: equation, source, constants."""
    return (sys.modules[method.function.__module__].__doc__ or method.function.__doc__ or "").strip()


def _summary(method: Method) -> str:
    return _doc(method).split("\n\n")[0].replace("\n", " ")


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
        sub.add_argument("--slots", type=positive_int, help="processes on each device (one a GPU, one a core)")
        sub.add_argument("--dtype", choices=DTYPES, help="type of the stored weights (the model's own)")
        sub.add_argument("--device", default="auto", help="auto (every GPU, else the CPU), cpu, cuda, cuda:1")
        sub.add_argument("--batch-size", type=positive_int, default=64)
        sub.add_argument("--architecture", default="resnet18", help="resnet18, or file.py:function that builds a net")

    sub = command("emit", _emit, "write N unlearned checkpoints into submission.zip inside a time limit")
    method_options(sub)
    sub.add_argument("--out", type=Path, default=WORKING_DIR, help="folder of archive and ledger")
    sub.add_argument("--work", type=Path, help="folder of checkpoints until they are packed (OUT/checkpoints)")
    sub.add_argument("--fill", action="store_true", help="use the whole limit, with more steps than the method wants")

    sub = command("profile", _profile, "time a few checkpoints phase by phase; exit code 0 where N fit the limit")
    sub.set_defaults(interrupted=NOTHING_LEFT)
    method_options(sub)
    sub.add_argument("--out", type=Path, default=Path(), help="folder that would hold the archive, for its disk")
    sub.add_argument("--measure", type=positive_int, default=3, metavar="K", help="checkpoints to time (3)")

    sub = command("verify", _verify, "check an archive; exit code 0 where every check holds")
    sub.set_defaults(interrupted=NOTHING_LEFT)
    sub.add_argument("archive", type=Path)
    sub.add_argument("--n-models", type=positive_int, default=N_CHECKPOINTS, help="checkpoints expected (512)")
    sub.add_argument("--original", type=Path, help="original_model.pth, to tell copies of it")
    sub.add_argument("--architecture", default="resnet18", help="resnet18, or file.py:function that builds a net")

    sub = command("methods", _methods, "list the methods, or one with its hyper-parameters")
    sub.add_argument("name", nargs="?")
    return parser


def main(argv: list[str] | None = None, spent_s: float = 0.0) -> int:
    """spent_s: seconds that count against a time limit before this call, those of starting Python and of imports."""
    parser = _parser()
    parser.set_defaults(spent_s=spent_s)
    return run(parser, argv)


if __name__ == "__main__":
    keep_freed_memory()  # as in worker processes
    code = main(spent_s=process_age_s())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # nothing is left to do, and taking torch apart can take most of a second of the limit
