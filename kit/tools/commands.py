"""What the commands of the kit do once their words are read."""

import argparse
import inspect
import re
import statistics
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kit.budget import TimeBudget, parse_duration
from kit.competition import MODEL_FILE, load_state
from kit.device import accelerators, choose_device, n_cores
from kit.emit import Problem, emit
from kit.errors import InputError
from kit.jobs import warm_up
from kit.ledger import FILE_NAME, Ledger
from kit.methods import Method
from kit.submit import read_problem
from kit.tools.cli import answer
from kit.tools.folder import all_method_names, find_method
from kit.tools.own import build_net
from kit.tools.profile import profile
from kit.tools.verify import verdict_lines, verify

_HEADING = "Hyper-parameters:"
_OF_SGD = {
    "lr": "learning rate of SGD, at its highest",
    "momentum": "of SGD",
    "weight_decay": "of SGD",
    "bfloat16": "train in bfloat16 where autocast allows it",
}
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
    architecture = partial(build_net, args.architecture, args.input / MODEL_FILE)
    return partial(read_problem, args.input, method, architecture=architecture, batch_size=args.batch_size, **options)


def run_emit(args: argparse.Namespace) -> int:
    budget = TimeBudget(args.limit, spent_s=time.monotonic() - args.begun)
    devices = devices_of(args)
    method = find_method(args.method, args.set)
    if len(devices) > 1:
        warm_up()
    model, loaders = _problem(args, method, progress=not args.quiet)(devices[0] if len(devices) == 1 else "cpu")
    n_retain, n_forget = len(loaders.retain.dataset), len(loaders.forget.dataset)
    if n_forget > n_retain:
        swapped = f"{n_forget} images to forget, {n_retain} to retain: are retain.csv and forget.csv swapped?"
        print(f"warning: {args.input}: {swapped}", file=sys.stderr)
    kept = _made_before(args.out, args.n_models)
    result = emit(
        method,
        model,
        loaders,
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
        "ok": not result.faults,
        "faults": result.faults,
        "seconds": result.seconds,
        "checkpoint_s": statistics.fmean(result.checkpoint_s),
        "steps": result.steps,
        "stood_in": len(result.reasons),
        "reused": kept,
    }
    word = "NOT fit for the upload" if result.faults else "checked"
    last = f"{result.summary(budget.limit_s)}, {word}: {result.archive}"
    if kept:
        print(
            f"reused {kept} checkpoints of {method.name} in {args.out}: to make them anew, delete it", file=sys.stderr
        )
    answer(args, facts, [*(f"FAIL  {fault}" for fault in result.faults), last])
    return 0 if facts["ok"] else 1


def _made_before(out: Path, n_models: int) -> int:
    """How many checkpoints an earlier run into this folder wrote down; whether of the same method, `emit` checks."""
    lines = Ledger(out / FILE_NAME).of("checkpoint")
    return len({line.get("index") for line in lines} & set(range(n_models)))


def run_profile(args: argparse.Namespace) -> int:
    limit_s = parse_duration(args.limit)
    method, devices = find_method(args.method, args.set), devices_of(args)
    result = profile(
        method,
        *_problem(args, method, progress=not args.quiet)(devices[0]),
        n_measured=args.measure,
        n_checkpoints=args.n_models,
        limit_s=limit_s,
        dtype=DTYPES.get(args.dtype),
        seed=args.seed,
        load_s=time.monotonic() - args.begun,
        out=args.out,
        n_parallel=len(devices),
        progress=not args.quiet,
    )
    projected = {"projected_s": result.project(), "uncertainty_s": result.uncertainty_s, "fits": result.fits}
    answer(args, asdict(result) | projected | {"elsewhere": result.elsewhere()}, result.lines())
    return 0 if result.fits else 1


def run_verify(args: argparse.Namespace) -> int:
    if not args.archive.exists():
        raise InputError(f"{args.archive}: no such file: give the archive that the run wrote")
    net = build_net(args.architecture, args.original)
    model, known = load_state(args.original, net) if args.original else net, args.original is not None
    checks = verify(args.archive, args.n_models, model.state_dict(), is_original=known, progress=not args.quiet)
    ok = all(check.ok for check in checks)
    answer(args, {"ok": ok, "checks": [asdict(check) for check in checks]}, verdict_lines(checks))
    return 0 if ok else 1


def run_methods(args: argparse.Namespace) -> int:
    names = [args.name] if args.name else all_method_names()
    methods = {name: find_method(name) for name in names}
    facts = {
        name: {
            "summary": _summary(method),
            "hyper_parameters": dict(method.defaults),
            "meanings": meanings(method),
            "anytime": method.anytime,
        }
        for name, method in methods.items()
    }
    lines = []
    for name, method in methods.items():
        if args.name:
            lines += [_doc(method) or f"{name}: its file says nothing of it", "", *_hyper_lines(method)]
        else:
            lines.append(f"{name:<22}{_summary(method)}")
    answer(args, facts, lines)
    return 0


def meanings(method: Method) -> dict[str, str]:
    """What each hyper-parameter means, as the lines `name: words` below "Hyper-parameters:" in the docstring say."""
    found = {}
    for part in method.components:
        prefix = f"{part.name}." if len(method.components) > 1 else ""
        lines = re.split(r"\n(?=  \w+: )", _whole_doc(part).partition(_HEADING)[2])
        said = dict(line.strip().split(": ", 1) for line in lines if ": " in line)
        found |= {f"{prefix}{name}": " ".join(said.get(name, _OF_SGD.get(name, "")).split()) for name in part.defaults}
    return found


def _hyper_lines(method: Method) -> list[str]:
    values = {name: f"{name} = {value!r}" for name, value in method.defaults.items()}
    width = max(map(len, values.values()), default=0)
    return [f"    {values[name]:<{width}}  {meaning}".rstrip() for name, meaning in meanings(method).items()]


def _doc(method: Method) -> str:
    """What the method's file says of it: equation, source, constants. Of a mixture what those of its parts say."""
    return "\n\n".join(_whole_doc(part).partition(_HEADING)[0].strip() for part in method.components)


def _whole_doc(method: Method) -> str:
    function = method.function
    return inspect.cleandoc(sys.modules[function.__module__].__doc__ or function.__doc__ or "")


def _summary(method: Method) -> str:
    return _doc(method).split("\n\n")[0].replace("\n", " ")
