"""Functions in a user's file: `file.py:function` wherever a name of the project's own can stand."""

import functools
import hashlib
import inspect
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from kit.competition import N_CLASSES, load_tensors, resnet18
from kit.errors import InputError, first_line
from kit.methods import load_file


class FileSpec(NamedTuple):
    """`path/to/file.py:function[:argument]`, read; argument is None where nothing was written."""

    path: Path
    function: str
    argument: str | None = None

    def __str__(self) -> str:
        return ":".join([str(self.path), self.function, *([] if self.argument is None else [self.argument])])

    def source(self) -> str:
        """What names the text of the file: 16 hex digits of its SHA-256. InputError where it cannot be read."""
        return _digest(_text_of(self.path))

    @property
    def identity(self) -> str:
        """What two runs must share: function, argument and the file's text, wherever the file lies."""
        return ":".join([self.function, self.source(), *([] if self.argument is None else [self.argument])])


def is_file_spec(spec: str) -> bool:
    """Does it name a Python file, rather than something of the project's own?

    >>> is_file_spec("nets/mine.py:net"), is_file_spec("resnet18")
    (True, False)
    """
    return spec.endswith(".py") or ".py:" in spec


def read_spec(spec: str, what: str) -> FileSpec:
    """The parts of a text for which `is_file_spec` holds, with an absolute path; `what` (an option's name) begins the
    message of an InputError where it names no function."""
    stem, _, rest = spec.partition(".py:")
    function, colon, argument = rest.partition(":")
    if not function:
        raise InputError(
            f"{what} {spec}: names no function of the file: write it as {stem.removesuffix('.py')}.py:NAME"
        )
    return FileSpec(Path(f"{stem}.py").expanduser().resolve(), function, argument if colon else None)


def own_function(spec: FileSpec, what: str) -> Callable[..., Any]:
    """The function, its file run once for as long as its text stays the same. InputError where there is none."""
    function = getattr(_module(spec.path, _digest(_text_of(spec.path))), spec.function, None)
    if not callable(function):
        raise InputError(f"{what} {spec}: {spec.path.name} defines no function {spec.function}")
    return function


def build_own_net(spec: str, n_classes: int = N_CLASSES, what: str = "--architecture") -> nn.Module:
    """The net that a function (or class) of a user's file builds. It is given `n_classes` where it takes a parameter
    of this name or `num_classes`, or where it needs an argument; else nothing."""
    named = read_spec(spec, what)
    function = own_function(named, what)
    parameters = inspect.signature(function).parameters
    name = next((name for name in ("n_classes", "num_classes") if name in parameters), None)
    needed = [
        p
        for p in parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) > 1:
        raise InputError(f"{what} {spec}: needs {', '.join(p.name for p in needed)}: expected n_classes or nothing")
    net = call_own(
        named, what, function, *([n_classes] if needed and not name else []), **({name: n_classes} if name else {})
    )
    if not isinstance(net, nn.Module):
        raise InputError(f"{what} {spec}: gave {type(net).__name__}: expected a torch.nn.Module")
    return net


def build_net(spec: str, original: Path | None = None) -> nn.Module:
    """An untrained net: the competition's resnet18, or what `file.py:function` builds, for as many classes as make it
    fit the state dict that the file `original` holds. Where none fits or none is given: the competition's."""
    if spec == "resnet18":
        return resnet18()
    if not is_file_spec(spec):
        raise InputError(f"--architecture {spec}: expected resnet18 or file.py:function")
    own = build_own_net(spec)
    expected = _shapes_in(original) if original else {}
    sizes = dict.fromkeys(shape[0] for shape in reversed(expected.values()) if shape)  # a head is mostly the last entry
    nets = chain([own], (build_own_net(spec, n_classes) for n_classes in sizes))
    return next((net for net in nets if {k: v.shape for k, v in net.state_dict().items()} == expected), own)


def _shapes_in(path: Path) -> dict[str, torch.Size]:
    """Name -> shape of a state dict's entries; nothing where it is none: whoever loads it says why."""
    try:
        with path.open("rb") as file:
            return {name: tensor.shape for name, tensor in load_tensors(file).items()}
    except Exception:  # torch raises many kinds for a broken file
        return {}


def call_own(spec: FileSpec, what: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a user's function gives; whatever it raises becomes one line with its own line number."""
    try:
        return function(*args, **options)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever a foreign function raises
        trace, line = error.__traceback__, "?"
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == str(spec.path):
                line = trace.tb_lineno
            trace = trace.tb_next
        raise InputError(f"{what} {spec}, line {line}: {type(error).__name__}: {first_line(error)}") from error


def _text_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


@functools.lru_cache
def _module(path: Path, digest: str) -> ModuleType:
    return load_file(path)
