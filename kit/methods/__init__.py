"""Unlearning methods: one file a method, its name the file's; nothing to register.

A method is a function `unlearn(net, retain_loader, forget_loader, val_loader, *, seed, plan=None, <hyper-parameters>)`
that changes `net` in place, or returns another. A participant's four-argument function works too.
"""

import functools
import hashlib
import importlib
import importlib.util
import inspect
import linecache
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from kit import __version__
from kit.competition import Loaders, TensorLoader
from kit.errors import InputError
from kit.methods.shared.mixture import PREFIX, interleaving, read_mixture
from kit.plan import Plan
from kit.training import fine_tune

_FILE_FUNCTIONS = ("unlearning", "unlearn")  # what a participant's file may call it, the starter's name first
_RESERVED = ("seed", "plan")
RECOVERY = ("lr", "momentum", "weight_decay", "bfloat16")  # options of fine_tune that a method takes as **recovery


@dataclass(frozen=True)
class Method:
    """An unlearning function, what it can be told, and the hyper-parameters chosen for it; it travels to processes.

    file: a participant's `file.py:function`, from which another process reads it again. source: hash of the text
    around the function, its file or its notebook cell: an edited one is another method.
    """

    name: str
    function: Callable[..., nn.Module | None]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    hyper: Mapping[str, Any] = field(default_factory=dict)
    anytime: bool = False  # takes a plan of steps
    seeded: bool = False  # takes a seed
    source: str = ""
    file: str = ""

    def __call__(self, net: nn.Module, loaders: Loaders, *, seed: int, plan: Plan | None = None) -> nn.Module:
        """Unlearn in place or not: the unlearned net is returned."""
        told = {"seed": seed} if self.seeded else {}
        if self.anytime:
            told["plan"] = plan
        result = self.function(net, *loaders, **told, **self.hyper)
        return result if isinstance(result, nn.Module) else net

    def __reduce__(self) -> tuple[Any, ...]:
        if not self.file:
            return type(self), tuple(getattr(self, item.name) for item in fields(self))
        return _read_again, (self.file, self.name, self.hyper, self.source)

    @property
    def components(self) -> "tuple[Method, ...]":
        """The methods that make its checkpoints: itself, unless it is a mixture."""
        return (self,)

    def component_of(self, index: int) -> int:
        """Which of them makes checkpoint `index`."""
        return 0

    @property
    def loader(self) -> type[DataLoader]:
        """The loader it is given: a foreign function gets the starter's own, whose cached items it may change."""
        return TensorLoader if self.anytime else DataLoader

    @property
    def settings(self) -> dict[str, Any]:
        """Every hyper-parameter with its value."""
        return {**self.defaults, **self.hyper}

    @property
    def identity(self) -> dict[str, Any]:
        """What two runs must share to be runs of one method, as plain JSON values."""
        hyper = {name: _plain(value) for name, value in self.settings.items()}
        return {"method": self.name, "hyper": hyper, "source": self.source, "version": __version__}


@dataclass(frozen=True)
class Mixture(Method):
    """Several methods that share the checkpoints of one pool in the proportion of their weights.

    Each is set by hyper-parameters called NAME.HYPER-PARAMETER.
    """

    parts: tuple[Method, ...] = ()
    weights: tuple[int, ...] = ()

    @property
    def components(self) -> tuple[Method, ...]:
        return tuple(replace(part, hyper={**part.hyper, **self._told(f"{part.name}.")}) for part in self.parts)

    def _told(self, prefix: str) -> dict[str, Any]:
        return {name[len(prefix) :]: value for name, value in self.hyper.items() if name.startswith(prefix)}

    def component_of(self, index: int) -> int:
        turns = interleaving(self.weights)
        return turns[index % len(turns)]


def mixture_of(methods: Sequence[Method], weights: Sequence[int]) -> Mixture:
    """A mixture of methods that take a plan of steps, two or more, each once, with whole weights of at least 1."""
    names = [method.name for method in methods]
    name = f"mixture({', '.join(f'{one}={weight}' for one, weight in zip(names, weights, strict=True))})"
    if len(names) < 2:
        raise InputError(f"{name}: has one component: name two methods or more")
    for method in methods:
        if names.count(method.name) > 1:
            raise InputError(f"{name}: {method.name} is in it twice: give each method once")
        if not method.anytime:
            raise InputError(
                f"{name}: {method.name} takes no plan of steps, by which a mixture shares the time: let its function "
                "take the keywords seed and plan=None, and ask kit.plan.planned_steps(plan, n) how many to take"
            )
    interleaving(tuple(weights))
    return Mixture(
        name=name,
        function=_by_components,
        defaults={f"{method.name}.{key}": value for method in methods for key, value in method.settings.items()},
        anytime=True,
        seeded=True,
        source=hashlib.sha256("".join(method.source for method in methods).encode()).hexdigest()[:16],
        parts=tuple(methods),
        weights=tuple(weights),
    )


def _by_components(net: nn.Module, *_: Any, seed: int, plan: Plan | None = None) -> nn.Module:
    raise TypeError("a mixture is called by its components: kit.checkpoint.unlearn_once takes that of a checkpoint")


def _plain(value: Any) -> str:
    """A value as a text that is the same in every process: no address of an object is in it."""
    if value is None or isinstance(value, bool | int | float | str):
        return str(value)
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_plain, value))})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_plain(key)}: {_plain(one)}' for key, one in value.items())}}}"
    if callable(value):
        return f"{getattr(value, '__qualname__', type(value).__qualname__)} {_source_of(value)}".strip()
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _source_of(function: Callable[..., Any]) -> str:
    """Hash of the file or notebook cell in which a function is written; empty where there is none to read."""
    found = inspect.unwrap(_inner(function))
    code = getattr(found, "__code__", None) or getattr(type(found).__call__, "__code__", None)  # of an object's class
    if code is None:
        return ""
    linecache.checkcache(code.co_filename)
    text = "".join(linecache.getlines(code.co_filename))
    text = text or f"{code.co_code!r}{_plain(code.co_consts)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _inner(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__func__", function)


def method_names() -> list[str]:
    """The names of the methods that come with the kit."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def get_method(spec: str, settings: Iterable[str] = ()) -> Method:
    """The method of a name, of `path/to/file.py[:function]` or of `mixture(NAME=WEIGHT, ...)` of these, with
    hyper-parameters set by `name=value` texts.

    Raises InputError for an unknown name, a file that cannot be run, a function with another signature, a mixture
    that is none, an unknown hyper-parameter or a value of another type than its default.
    """
    if spec.startswith(PREFIX):
        names, weights = zip(*read_mixture(spec), strict=True)
        method = mixture_of([get_method(name) for name in names], weights)
    elif spec.partition(":")[0].endswith(".py"):
        batches = importlib.import_module("kit.tools.batches")  # not above: it stands on this module
        method = batches.adapted(method_from_file(spec))
    elif spec in method_names():
        method = method_of(importlib.import_module(f"{__name__}.{spec}").unlearn, spec)
    else:
        close = get_close_matches(spec, method_names(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(
            f"method {spec!r}: unknown: {hint}known are {', '.join(method_names())}, file.py[:function], "
            "mixture(NAME=WEIGHT, ...)"
        )
    return with_settings(method, settings)


def method_of(function: Callable[..., Any], name: str | None = None) -> Method:
    """Read from its signature what `function` can be told; InputError unless it takes the four arguments.

    Of a parameter `**recovery` these are the options of `kit.training.fine_tune` that it does not name itself.
    """
    name = name or getattr(_inner(function), "__name__", type(function).__name__)
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    further = positional[4:] + [p for p in parameters if p.kind == p.KEYWORD_ONLY]
    required = [p.name for p in further if p.default is p.empty and p.name not in _RESERVED]
    if (few := len(positional) < 4 and not any(p.kind == p.VAR_POSITIONAL for p in parameters)) or required:
        fault = f"takes {len(positional)} arguments" if few else f"{', '.join(required)} has no default"
        raise InputError(f"{name}: {fault}: expected (net, retain_loader, forget_loader, val_loader), others optional")
    names = [p.name for p in further]
    defaults = {p.name: p.default for p in further if p.name not in _RESERVED}
    if any(p.kind == p.VAR_KEYWORD and p.name == "recovery" for p in parameters):
        options = inspect.signature(fine_tune).parameters
        defaults |= {option: options[option].default for option in RECOVERY if option not in defaults}
    return Method(
        name=name,
        function=function,
        defaults=defaults,
        anytime="plan" in names,
        seeded="seed" in names,
        source=_source_of(function),
    )


def with_settings(method: Method, settings: Iterable[str]) -> Method:
    """`method` with hyper-parameters set by `name=value` texts, read as the type of their defaults."""
    hyper, seen = dict(method.hyper), set()
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: expected name=value")
        if name in seen:
            raise InputError(f"--set {setting}: {name} is set twice: once is enough")
        seen.add(name)
        if name not in method.defaults:
            known = ", ".join(f"{key}={value!r}" for key, value in method.defaults.items()) or "none"
            close = get_close_matches(name, method.defaults, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InputError(f"--set {setting}: {method.name} has no hyper-parameter {name!r}: {hint}it has {known}")
        hyper[name] = _parse(text, method.defaults[name], setting)
    return replace(method, hyper=hyper)


def _parse(text: str, default: Any, setting: str) -> Any:
    readers: dict[type, Callable[[str], Any]] = {bool: _read_bool, int: int, float: float, str: str}
    kind = type(default)
    try:
        if kind in readers:
            return readers[kind](text)
        return _read_any(text)
    except ValueError as error:
        several = "; to try several values: python -m local_eval sweep" if "," in text else ""
        raise InputError(f"--set {setting}: expected {kind.__name__}, such as {default!r}{several}") from error


def _read_bool(text: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _read_any(text: str) -> Any:
    """For a default of None or of a compound type: a number where it reads as one, else the text."""
    for reader in (int, float):
        try:
            return reader(text)
        except ValueError:
            continue
    return None if text == "None" else text


def method_from_file(spec: str) -> Method:
    """The method that `file.py[:function]` names, by default the file's `unlearning` or `unlearn`."""
    text, _, wanted = spec.partition(":")
    path, names = Path(text), [wanted] if wanted else list(_FILE_FUNCTIONS)
    module = load_file(path)
    found = next((name for name in names if callable(getattr(module, name, None))), None)
    if found is None:
        raise InputError(f"{path}: defines no function {' or '.join(names)}: name it as {path}:FUNCTION")
    method = method_of(getattr(module, found), f"{path.stem}:{wanted}" if wanted else path.stem)
    return replace(method, file=f"{Path(module.__spec__.origin).resolve()}:{found}")


def _read_again(file: str, name: str, hyper: Mapping[str, Any], source: str) -> Method:
    """The same method in another process."""
    method = method_from_file(file)
    if method.source != source:
        raise InputError(f"{file.partition(':')[0]}: was changed while it was used: run the same command again")
    return replace(method, name=name, hyper=hyper)


def load_file(path: Path) -> ModuleType:
    """Run a Python file as a module; whatever it raises becomes one line with the file and its line."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(f"participant_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling look a class's module up there
    sys.path.insert(0, folder := str(path.resolve().parent))  # files beside it can be imported, as when it is run
    try:
        code = spec.loader.source_to_code(spec.loader.get_data(spec.origin), spec.origin)
        exec(code, vars(module))  # as it stands: byte code kept from before may be of a file edited within the second
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == spec.origin]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else "?")
        raise InputError(f"{path}, line {line}: {type(error).__name__}: {error}") from error
    finally:
        with suppress(ValueError):  # the file may have removed it
            sys.path.remove(folder)
    return module
