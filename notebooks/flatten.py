"""The kit flattened: what some of its functions need, through the import graph, as one readable module.

Parts come in the order of their dependencies, each under a banner with its file and purpose; of a file only the
definitions that are reached; imports are hoisted, those within the kit dropped; of a public docstring the
first sentence stays; lines are filled.
"""

import ast
import builtins
import hashlib
import importlib.util
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from kit import __version__
from kit.errors import InputError
from notebooks.fill import LINE_LENGTH, filled

PACKAGE = "kit"
_BANNER = "# ---- "
_METHOD = re.compile(r"    (@|(async )?def )")  # what keeps a blank line above it in a class


class Import(NamedTuple):
    """What an import binds a name to. name: in `module`, empty for the module itself."""

    module: str
    name: str

    @property
    def in_kit(self) -> bool:
        return self.module.partition(".")[0] == PACKAGE

    @property
    def origin(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module


@dataclass(frozen=True)
class Definition:
    """A statement of a module that binds names. uses: names that must exist for it to run, builtins included."""

    names: frozenset[str]
    uses: frozenset[str]
    source: str
    line: int


@dataclass(frozen=True)
class Module:
    """A source file in parts. imports: name here -> where it comes from."""

    file: str
    summary: str
    definitions: tuple[Definition, ...]
    imports: Mapping[str, Import]


@dataclass
class Reached:
    """Definitions by module and line, imports from outside the kit with the name they bind, and who gives each name."""

    definitions: dict[str, dict[int, Definition]] = field(default_factory=dict)
    imports: set[tuple[str, Import]] = field(default_factory=set)
    needs: dict[str, set[str]] = field(default_factory=dict)  # module -> modules of what it uses
    origin: dict[str, str] = field(default_factory=dict)

    def claim(self, name: str, origin: str) -> None:
        other = self.origin.setdefault(name, origin)
        if other != origin:
            raise InputError(f"{name} is given by {other} and by {origin}: in one module a name can mean one thing")


@cache
def read_module(name: str) -> Module:
    """A module of the kit by its dotted name."""
    path, top = (Path(importlib.util.find_spec(one).origin) for one in (name, PACKAGE))
    return parse_module(path.relative_to(top.parents[1]).as_posix(), path.read_text(encoding="utf-8"))


def parse_module(file: str, text: str) -> Module:
    """Take a source apart. Raises InputError for imports that cannot be flattened."""
    tree, lines = ast.parse(text), text.split("\n")
    imports, definitions = {}, []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.update(_imports_of(node, file))
        elif not _is_docstring(node) and not is_main_block(node):
            definitions.append(_definition(node, lines, file))
    summary = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
    return Module(file, summary, tuple(definitions), imports)


def _imports_of(node: ast.Import | ast.ImportFrom, file: str) -> Iterator[tuple[str, Import]]:
    for alias in node.names:
        if isinstance(node, ast.ImportFrom):
            if node.level or alias.name == "*":
                raise InputError(f"{file}, line {node.lineno}: write out what is imported: from module import name")
            yield alias.asname or alias.name, Import(node.module, alias.name)
        elif Import(alias.name, "").in_kit:
            raise InputError(f"{file}, line {node.lineno}: write from {alias.name} import NAME")
        else:
            yield alias.asname or alias.name.partition(".")[0], Import(alias.name, "")


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def is_main_block(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def _definition(node: ast.stmt, lines: list[str], file: str) -> Definition:
    for inner in ast.walk(node):
        if isinstance(inner, ast.ImportFrom) and Import(inner.module or "", "").in_kit:
            raise InputError(f"{file}, line {inner.lineno}: an import from the kit inside a function: move it up")
    found = [inner for inner in ast.walk(node) if isinstance(inner, ast.Name)]
    names = {name.id for name in found if isinstance(name.ctx, ast.Store)}
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        names = {node.name}
    uses = {name.id for name in found if isinstance(name.ctx, ast.Load)}
    return Definition(frozenset(names), frozenset(uses - names), _source(node, lines), node.lineno)


def _source(node: ast.stmt, lines: list[str]) -> str:
    """Lines of a statement with its decorators and the comments right above it, filled; docstrings are shortened, those
    of private functions left out."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
    while first and lines[first - 1].startswith("#"):
        first -= 1
    kept = lines[: node.end_lineno]
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    owners = [n for n in ast.walk(node) if isinstance(n, documented) and _is_docstring(n.body[0])]
    for owner in sorted(owners, key=lambda owner: -owner.lineno):
        doc, others = owner.body[0], owner.body[1:]
        kept[doc.lineno - 1 : doc.end_lineno] = [] if owner.name.startswith("_") and others else _first_sentence(doc)
    return filled("\n".join(kept[first:]), _METHOD if isinstance(node, ast.ClassDef) else None)


def _first_sentence(doc: ast.Expr) -> list[str]:
    """Of a docstring, as lines."""
    paragraph = " ".join(doc.value.value.split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.]) (?=[A-Z])", paragraph)[0]
    indent = " " * doc.col_offset
    return textwrap.wrap(f'"""{sentence}"""', LINE_LENGTH, initial_indent=indent, subsequent_indent=indent)


def reach(roots: Iterable[Import]) -> Reached:
    """All that the roots need. Raises InputError where two files give one name different meanings, naming both."""
    reached, todo, seen = Reached(), list(roots), set()
    while todo:
        root = todo.pop()
        if root in seen:
            continue
        seen.add(root)
        module = read_module(root.module)
        needs = reached.needs.setdefault(root.module, set())
        given = [definition for definition in module.definitions if root.name in definition.names]
        wanted = set().union(*(definition.uses for definition in given)) if given else {root.name}
        if not given and not module.imports.get(root.name, Import("", "")).in_kit:
            raise InputError(f"{module.file}: defines no {root.name}: import names, not modules, from the kit")
        for definition in given:
            reached.definitions.setdefault(root.module, {})[definition.line] = definition
            for name in definition.names:
                reached.claim(name, module.file)
        for name in sorted(wanted):
            item = module.imports.get(name)
            if item is None and any(name in definition.names for definition in module.definitions):
                todo.append(Import(root.module, name))
            elif item is None and hasattr(builtins, name):
                reached.claim(name, "Python itself")
            elif item is not None and item.in_kit:
                if name != item.name:
                    raise InputError(f"{module.file}: {name} is another name for {item.name}: use one name")
                todo.append(item)
                needs.add(item.module)
            elif item is not None:
                whole = item.module.partition(".")[0] == name and not item.name  # import a, or import a.b
                reached.claim(name, name if whole else item.origin)
                reached.imports.add((name, item))
    return reached


def flatten(roots: Iterable[Import], title: str) -> str:
    """All that the roots need as the text of one module; title, version and hash stand on top."""
    reached = reach(roots)
    parts = ["\n".join(import_lines(reached.imports))]
    order = TopologicalSorter({name: sorted(needs) for name, needs in sorted(reached.needs.items())})
    for name in order.static_order():
        if found := reached.definitions.get(name):
            module = read_module(name)
            parts.append(textwrap.shorten(f"{_BANNER}{module.file}: {module.summary}", LINE_LENGTH, placeholder=" ..."))
            parts += [found[line].source for line in sorted(found)]
    body = "".join(part + _gap(part, after) for part, after in pairwise([*parts, ""]))
    digest = hashlib.sha256(body.encode()).hexdigest()[:16]
    about = f"the package `{PACKAGE}` has it with every comment; sha256 of what follows: {digest}"
    return f"# Unlearning Submission Kit {__version__}: {title}\n# {about}\n{body}"


def _gap(part: str, after: str) -> str:
    """A blank line, but none below a banner and between constants of one line."""
    close = part.startswith(_BANNER) or "\n" not in part + after
    return "\n" if not after or (close and not after.startswith(_BANNER)) else "\n\n"


def import_lines(imports: Iterable[tuple[str, Import]]) -> list[str]:
    """Import statements, sorted, the standard library's first."""
    whole, parts = set(), {}
    for here, (module, name) in imports:
        if name:
            parts.setdefault(module, set()).add(name if name == here else f"{name} as {here}")
        else:
            whole.add(module if here in (module, module.partition(".")[0]) else f"{module} as {here}")
    common = textwrap.wrap(", ".join(module for module in sorted(whole) if _is_standard(module)), LINE_LENGTH - 8)
    standard = [f"import {line.rstrip(',')}" for line in common]
    others = [f"import {module}" for module in sorted(whole) if not _is_standard(module)]
    for module, names in sorted(parts.items()):
        line = f"from {module} import {', '.join(sorted(names))}"
        if len(line) > LINE_LENGTH:
            inner = textwrap.wrap(", ".join(sorted(names)) + ",", LINE_LENGTH - 4)
            line = "\n".join([f"from {module} import (", *(f"    {text}" for text in inner), ")"])
        (standard if _is_standard(module) else others).append(line)
    return [*standard, *([""] if standard and others else []), *others]


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names
