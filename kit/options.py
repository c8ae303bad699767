"""What the options of a command line name, opened: method, model, data, and a process for each core or GPU."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from kit.competition import Loaders, load_original, read_tree, resnet18
from kit.errors import InputError
from kit.making import Maker
from kit.methods import Method, get_method, load_file
from kit.preflight import choose_device
from kit.workers import n_cores

_WORTH_STARTING = 8  # checkpoints, from which on it pays to start a process a core
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


def prepare(args: argparse.Namespace) -> tuple[Method, nn.Module, Loaders]:
    """Method, model and loaders of a command, cheapest mistake first."""
    method = get_method(args.method, args.set)
    device = choose_device(args.device)
    model = load_original(args.input, architecture(args.architecture)).to(device)
    where = device if method.anytime else "cpu"
    loaders = read_tree(args.input, args.batch_size, loader=method.loader, device=where, progress=not args.quiet)
    return method, model, loaders


def devices_of(args: argparse.Namespace) -> list[str]:
    """Where checkpoints are made, an entry a process: every GPU, or the cores, unless told how many and where."""
    device = choose_device(args.device)
    if device.type == "cuda" and device.index is None:
        gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        return [gpus[slot % len(gpus)] for slot in range(args.workers or len(gpus))]
    if device.type != "cpu":
        return [str(device)] * (args.workers or 1)
    return ["cpu"] * (args.workers or (n_cores() if args.n_models >= _WORTH_STARTING else 1))


def maker_on(args: argparse.Namespace, device: str) -> Maker:
    """What makes the checkpoints of a command in a process of its own."""
    args = argparse.Namespace(**{**vars(args), "device": device, "quiet": True})
    return Maker(*prepare(args), args.seed, DTYPES.get(args.dtype), args.fill)
