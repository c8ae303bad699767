"""The kit flattened: what some of its functions need, through the import graph, as one readable piece of code.

Modules come in the order of their dependencies, each under a banner; of a module only the definitions that are
reached; imports are hoisted, those within the kit dropped; of a docstring the first paragraph stays.
"""

import ast
import builtins
import hashlib
import importlib.util
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from kit import __version__
from kit.errors import InputError

PACKAGE = "kit"
LINE_LENGTH = 120
Import = tuple[str, str, str]  # module, name in it ("" for the module itself), name here


@dataclass(frozen=True)
class Definition:
    """A statement of a module that binds names. uses: names that must exist for it to run, builtins included."""

    names: frozenset[str]
    uses: frozenset[str]
    source: str
    line: int


@dataclass(frozen=True)
class Module:
    """A source file in parts. kit_imports, imports: name here -> where it comes from, within the kit and outside."""

    name: str
    path: Path
    summary: str
    definitions: tuple[Definition, ...]
    kit_imports: Mapping[str, Import]
    imports: Mapping[str, Import]


@dataclass
class Reached:
    """What flattened cells hold: definitions by module, imports from outside the kit, and who gives each name."""

    definitions: dict[str, list[Definition]] = field(default_factory=dict)
    imports: dict[str, Import] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)

    def beyond(self, earlier: "Reached") -> "Reached":
        """What an earlier cell does not hold already."""
        definitions = {
            module: [one for one in found if one not in earlier.definitions.get(module, [])]
            for module, found in self.definitions.items()
        }
        imports = {name: item for name, item in self.imports.items() if name not in earlier.imports}
        return Reached({module: found for module, found in definitions.items() if found}, imports, self.origin)


def read_module(name: str) -> Module:
    """A module of the kit by its dotted name."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise InputError(f"{name}: is no module: the kit cell is made of {PACKAGE}'s own")
    return _read_kit_module(name, Path(spec.origin).read_text(encoding="utf-8"), Path(spec.origin))


@cache
def _read_kit_module(name: str, text: str, path: Path) -> Module:
    return parse_module(name, text, path)


def parse_module(name: str, text: str, path: Path) -> Module:
    """Take a source apart. Raises InputError for imports that cannot be flattened."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: {error.msg}") from error
    doc = ast.get_docstring(tree) or ""
    kit_imports, imports, definitions = {}, {}, []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for item in _imports_of(node, path):
                (kit_imports if _in_kit(item[0]) else imports)[item[2]] = item
        elif not _is_docstring(node) and not _is_main_block(node):
            definitions.append(_definition(node, text.splitlines(), path))
    summary = " ".join(doc.split("\n\n")[0].split())
    return Module(name, path, summary, tuple(definitions), kit_imports, imports)


def _in_kit(module: str) -> bool:
    return module.partition(".")[0] == PACKAGE


def _imports_of(node: ast.Import | ast.ImportFrom, path: Path) -> Iterator[Import]:
    for alias in node.names:
        here = alias.asname or alias.name
        if isinstance(node, ast.ImportFrom):
            if node.level or alias.name == "*":
                raise InputError(f"{path}, line {node.lineno}: write out what is imported: from module import name")
            if _in_kit(node.module) and alias.asname not in (None, alias.name):
                raise InputError(f"{path}, line {node.lineno}: {here} is another name for {alias.name}: use one name")
            yield node.module, alias.name, here
        elif _in_kit(alias.name):
            raise InputError(f"{path}, line {node.lineno}: write from {alias.name} import NAME")
        else:
            yield alias.name, "", alias.asname or alias.name.partition(".")[0]


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_main_block(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def _definition(node: ast.stmt, lines: list[str], path: Path) -> Definition:
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        names = {node.name}
    for inner in ast.walk(node):
        if isinstance(inner, ast.ImportFrom) and _in_kit(inner.module or ""):
            raise InputError(f"{path}, line {inner.lineno}: an import from the kit inside a function: move it up")
    uses = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return Definition(frozenset(names), frozenset(uses), _source(node, lines), node.lineno)


def _source(node: ast.stmt, lines: list[str]) -> str:
    """Lines of a statement with its decorators and the comments right above it, docstrings shortened."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
    while first and lines[first - 1].startswith("#"):
        first -= 1
    kept = lines[: node.end_lineno]
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    docs = [n.body[0] for n in ast.walk(node) if isinstance(n, documented) and _is_docstring(n.body[0])]
    for doc in sorted(docs, key=lambda doc: -doc.lineno):
        body = kept[doc.lineno - 1 : doc.end_lineno]
        if "" in body:
            kept[doc.lineno - 1 : doc.end_lineno] = [*body[: body.index("") - 1], body[body.index("") - 1] + '"""']
    return "\n".join(kept[first:])


def reach(roots: Iterable[Import], own: Module | None = None) -> Reached:
    """All that the roots need. own: a module outside the kit that is there already, such as a method's file: its names
    must not be taken by anything reached.

    Raises InputError where two files give one name different meanings, naming both.
    """
    reached = Reached()
    if own:
        for name in sorted(_bound(own)):
            _claim(reached, name, own.path.name)
        for name, item in own.imports.items():
            _claim(reached, name, _origin(item))
    seen: set[tuple[str, str]] = set()
    for module, name, _ in roots:
        _visit(reached, seen, module, name)
    return reached


def _bound(module: Module) -> set[str]:
    return {name for definition in module.definitions for name in definition.names}


def _visit(reached: Reached, seen: set[tuple[str, str]], module_name: str, name: str) -> None:
    if (module_name, name) in seen:
        return
    seen.add((module_name, name))
    module = read_module(module_name)
    given = [definition for definition in module.definitions if name in definition.names]
    if not given and name in module.kit_imports:
        origin = module.kit_imports[name]
        return _visit(reached, seen, origin[0], origin[1])
    if not given:
        raise InputError(f"{module.path}: defines no {name}: import names, not modules, from the kit")
    for definition in given:
        reached.definitions.setdefault(module_name, []).append(definition)
        for bound in definition.names:
            _claim(reached, bound, _file_of(module))
        for used in sorted(definition.uses - definition.names):
            if used in module.kit_imports:
                origin = module.kit_imports[used]
                _visit(reached, seen, origin[0], origin[1])
            elif used in module.imports:
                item = module.imports[used]
                _claim(reached, used, _origin(item))
                reached.imports[used] = item
            elif used in _bound(module):
                _visit(reached, seen, module_name, used)
            elif hasattr(builtins, used):
                _claim(reached, used, "Python itself")
    return None


def _origin(item: Import) -> str:
    return f"{item[0]}.{item[1]}" if item[1] else item[0]


def _claim(reached: Reached, name: str, origin: str) -> None:
    other = reached.origin.setdefault(name, origin)
    if other != origin:
        raise InputError(f"the name {name} is given by {other} and by {origin}: in one cell it can mean one thing only")


def ordered(modules: Iterable[str]) -> list[str]:
    """Modules of the kit, each after those that it imports."""
    wanted, placed = sorted(modules), []

    def place(name: str, below: tuple[str, ...] = ()) -> None:
        if name in below:
            raise InputError(f"modules import each other in a circle: {' -> '.join((*below, name))}")
        if name in placed:
            return
        for module, _, _ in sorted(read_module(name).kit_imports.values()):
            place(module, (*below, name))
        placed.append(name)

    for name in wanted:
        place(name)
    return [name for name in placed if name in wanted]


def import_lines(imports: Iterable[Import]) -> list[str]:
    """Import statements, sorted, the standard library's first."""
    whole, parts = set(), {}
    for module, name, here in imports:
        if name:
            parts.setdefault(module, set()).add(name if name == here else f"{name} as {here}")
        else:
            whole.add(module if here in (module, module.partition(".")[0]) else f"{module} as {here}")
    lines = [f"import {module}" for module in sorted(whole)]
    for module, names in sorted(parts.items()):
        line = f"from {module} import {', '.join(sorted(names))}"
        if len(line) > LINE_LENGTH:
            inner = textwrap.wrap(", ".join(sorted(names)) + ",", LINE_LENGTH - 4)
            line = "\n".join([f"from {module} import (", *(f"    {text}" for text in inner), ")"])
        lines.append(line)
    standard = [line for line in lines if line.split()[1].partition(".")[0] in sys.stdlib_module_names]
    return [*standard, "", *(line for line in lines if line not in standard)]


def flatten(reached: Reached, title: str) -> str:
    """Everything reached as one piece of code; title, version and hash stand on top."""
    parts = ["\n".join(import_lines(reached.imports.values()))]
    for name in ordered(reached.definitions):
        module = read_module(name)
        banner = f"# {'-' * 4} {_file_of(module)}: {module.summary}"
        parts.append(textwrap.shorten(banner, LINE_LENGTH, placeholder=" ..."))
        unique = {definition.line: definition.source for definition in reached.definitions[name]}
        parts += [unique[line] for line in sorted(unique)]
    body = "\n\n".join(_joined(parts)) + "\n"
    digest = hashlib.sha256(body.encode()).hexdigest()[:16]
    return f"# Unlearning Submission Kit {__version__}: {title}\n# sha256 of what follows: {digest}\n{body}"


def _file_of(module: Module) -> str:
    return module.path.relative_to(Path(read_module(PACKAGE).path).parents[1]).as_posix()


def _joined(parts: list[str]) -> Iterator[str]:
    """The parts, constants of one line that follow each other without a blank line between them."""
    block: list[str] = []
    for part in parts:
        simple = "\n" not in part and not part.startswith("#")
        if block and not simple:
            yield "\n".join(block)
            block = []
        if simple:
            block.append(part)
        else:
            yield part
    if block:
        yield "\n".join(block)
