"""Names that today's Python and torch have and the competition's image has not, and where a program uses them.

golden/newer_names.json was made with the image's versions and with today's, each in its own environment:

    python3.10 tests/newer_names.py dump > old.json        torch 2.0.1, torchvision 0.15.2
    python3.13 tests/newer_names.py dump > new.json        and once more with today's torch
    python tests/newer_names.py compare old.json new.json ... > tests/golden/newer_names.json

Runs in Python 3.10 with the standard library, and torch where it is there.
"""

import ast
import importlib
import inspect
import json
import sys
from pathlib import Path

_MODULES = """
argparse ast bisect builtins collections collections.abc concurrent.futures contextlib copy csv ctypes dataclasses
datetime enum functools gc glob hashlib heapq importlib importlib.util inspect io itertools json linecache logging math
multiprocessing multiprocessing.connection multiprocessing.forkserver operator os os.path pathlib pkgutil platform
queue random re resource shutil signal stat statistics string struct subprocess sys tempfile textwrap threading time
traceback types typing warnings weakref zipfile zlib
torch torch.amp torch.autograd torch.autograd.graph torch.backends torch.backends.cuda torch.backends.cudnn torch.cuda
torch.cuda.amp torch.fft torch.func torch.jit torch.linalg torch.mps torch.multiprocessing torch.nn torch.nn.functional
torch.nn.init torch.nn.modules.module torch.nn.parallel torch.nn.utils torch.optim torch.optim.lr_scheduler
torch.overrides torch.random torch.serialization torch.special torch.utils torch.utils.checkpoint torch.utils.data
torchvision torchvision.io torchvision.models torchvision.transforms torchvision.transforms.functional
"""
# Classes whose methods are called on values, of which a program's text does not tell the type.
_CLASSES = """
builtins.bytes builtins.dict builtins.list builtins.str pathlib.Path re.Pattern concurrent.futures.ProcessPoolExecutor
zipfile.ZipFile zipfile.ZipInfo torch.Generator torch.Tensor torch.nn.Module torch.optim.Optimizer
torch.utils.data.DataLoader
"""
MODULES, CLASSES = tuple(_MODULES.split()), tuple(_CLASSES.split())


def dump():
    """Dotted name -> parameters of everything there; None where they cannot be read."""
    found = {}
    for name in (*MODULES, *CLASSES):
        module, _, last = name.rpartition(".")
        try:
            if name in MODULES:
                holder = importlib.import_module(name)
            else:
                holder = getattr(importlib.import_module(module), last)
        except ImportError:
            continue
        for attribute in dir(holder):
            value = getattr(holder, attribute, None)
            if not attribute.startswith("_") and _belongs(value, name):
                found[f"{name}.{attribute}"] = _parameters(value)
    return found


def _belongs(value, holder):
    """Whether a thing is torch's or the library's own rather than something that a module of torch imports."""
    top = str(getattr(value, "__module__", None) or holder).partition(".")[0]
    return not holder.startswith("torch") or top.startswith("torch")


def _parameters(value):
    """Names of a function's parameters; None where they cannot be read or are all `*args, **kwargs`."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return None
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)] or None


def compare(old, *others):
    """Names of `others` that `old` lacks, by what holds them, and new parameters of functions that it has."""
    names, parameters = {}, {}
    holders = {name.rpartition(".")[0] for name in old}
    methods = {name.rpartition(".")[2] for name in old if name.rpartition(".")[0] in CLASSES}
    for new in others:
        for name, now in new.items():
            holder, _, last = name.rpartition(".")
            if holder not in holders and holder not in MODULES:
                continue
            if holder in CLASSES and name not in old and last in methods:
                continue  # of another class: a text does not tell whose it is
            if name not in old:
                names.setdefault(holder, set()).add(last)
            elif now and old[name] and (added := set(now) - set(old[name])):
                parameters.setdefault(name, set()).update(added)
    return {"names": _sorted(names), "parameters": _sorted(parameters)}


def _sorted(sets):
    return {key: sorted(values) for key, values in sorted(sets.items())}


def newer_in(text, newer):
    """Where a program uses what is newer, a line each. newer: as `compare` gives it.

    What stands in a `try` that catches TypeError, AttributeError or ImportError is left out: it has a way for older
    versions.
    """
    tree = ast.parse(text)
    guarded = {
        id(inner) for node in ast.walk(tree) if _provides(node) for part in node.body for inner in ast.walk(part)
    }
    origins, found = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            origins.update({a.asname or a.name.partition(".")[0]: _imported(a) for a in node.names})
        elif isinstance(node, ast.ImportFrom) and node.module:
            origins.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            used = [(name, True) for a in node.names if (name := f"{node.module}.{a.name}") not in MODULES]
        elif isinstance(node, ast.Attribute):
            used = [_dotted(node, origins)]
        elif isinstance(node, ast.Name) and node.id not in origins:
            used = [(f"builtins.{node.id}", True)]
        else:
            used = []
        found += [(node.lineno, name) for name, known in used if _is_newer(name, known, newer["names"])]
        if isinstance(node, ast.Call):
            name, known = _dotted(node.func, origins)
            added = _added(name, known, newer["parameters"])
            found += [(node.lineno, f"{name}({k.arg}=)") for k in node.keywords if k.arg in added]
    return [f"line {line}: {name}" for line, name in sorted(set(found))]


def _provides(node):
    caught = {"TypeError", "AttributeError", "ImportError", "Exception"}
    names = {n.id for h in getattr(node, "handlers", []) for n in ast.walk(h.type or node) if isinstance(n, ast.Name)}
    return isinstance(node, ast.Try) and bool(names & caught)


def _imported(alias):
    return alias.name if alias.asname else alias.name.partition(".")[0]


def _dotted(node, origins):
    """(torch.nn.Linear, True) for what comes of an import, (walk, False) for an attribute of some value."""
    if isinstance(node, ast.Name):
        return origins.get(node.id, f"builtins.{node.id}"), True
    if isinstance(node, ast.Attribute):
        before, known = _dotted(node.value, origins)
        if known and not before.startswith("builtins."):
            return f"{before}.{node.attr}", True
        return node.attr, False
    return "", False


def _is_newer(name, known, names):
    holder, _, last = name.rpartition(".")
    return any(last in names.get(one, ()) for one in ([holder] if known else CLASSES))


def _added(name, known, parameters):
    places = [name] if known else [f"{one}.{name}" for one in CLASSES]
    return {parameter for place in places for parameter in parameters.get(place, ())}


if __name__ == "__main__":
    if sys.argv[1] == "dump":
        json.dump(dump(), sys.stdout)
    else:
        dumps = [json.loads(Path(path).read_text()) for path in sys.argv[2:]]
        json.dump(compare(*dumps), sys.stdout, indent=0)
        print()
