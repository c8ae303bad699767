"""A method as a submission for Kaggle: the kit as one module, the method as another, and what calls them."""

import ast
import json
import math
import re
import sys
import textwrap
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from kit import __version__
from kit.competition import INPUT_DIR
from kit.errors import InputError
from kit.methods import Mixture, method_names
from kit.methods.shared.mixture import read_mixture
from kit.tools.folder import find_method, own_methods
from notebooks.flatten import Import, flatten, import_lines, is_main_block, parse_module
from notebooks.percent import Cell

KIT_MODULE = "unlearning_kit"
METHOD_FILE = "unlearning_method.py"
DATA_SET = "unlearning-submission-kit"  # the kit on Kaggle, for notebooks that do not carry it
_ROOTS = {
    "submit": Import("kit.submit", "submit"),
    "method_from_file": Import("kit.methods", "method_from_file"),
    "mixture_of": Import("kit.methods", "mixture_of"),
}
_ADVISED = (Import("kit.tools.batches", "takes_pairs"),)  # by the kit, to a file of one's own, and no method needs it
_LEFT_BEHIND = ("data_stubs", "local_eval", "notebooks")  # what is installed with the kit and is not on Kaggle
_ENCODING = re.compile(r"[ \t\f]*#.*?coding[:=][ \t]*[-\w.]+")  # PEP 263
_SLUG_LENGTH = 50


@dataclass(frozen=True)
class Source:
    """A method as it travels. spec: what `submit` is told; text: of its file, which imports from the kit's one module;
    needs: what it imports. parts: of a mixture its components, which have specs and texts, with their weights."""

    name: str
    spec: str
    summary: str
    settings: Mapping[str, Any]
    text: str
    needs: tuple[Import, ...]
    parts: tuple[tuple["Source", int], ...] = ()

    @property
    def files(self) -> dict[str, str]:
        """The text of each file that is written, by its name."""
        texts = {part.spec.partition(":")[0]: part.text for part, _ in self.parts or ((self, 1),)}
        if len(texts) < len(self.parts):
            raise InputError(f"{self.name}: two of its files have one name: give them different ones")
        return texts

    @property
    def roots(self) -> tuple[str, ...]:
        """What the run takes from the kit's one module."""
        return ("method_from_file", "mixture_of", "submit") if self.parts else ("submit",)

    @property
    def argument(self) -> str:
        """What `submit` is told, as Python."""
        if not self.parts:
            return f'"{self.spec}"'
        methods = ", ".join(f'method_from_file("{part.spec}")' for part, _ in self.parts)
        return f"mixture_of([{methods}], {[weight for _, weight in self.parts]})"


def source_of(spec: str, settings: Sequence[str] = ()) -> Source:
    """The source of a method (a name, or file.py[:function]), hyper-parameters set by `name=value` texts.

    Raises InputError for what `find_method` refuses and for a file that needs others beside it.
    """
    method = find_method(spec, settings)
    if isinstance(method, Mixture):
        return _mixture(method, [source_of(name) for name, _ in read_mixture(spec)])
    own, _, function = str(own_methods().get(spec, spec)).partition(":") if method.file else ("", "", "")
    path = Path(own or find_spec(method.function.__module__).origin)
    text = _text_of(path)
    module = parse_module(path.name, text)
    if own:
        _check_imports(path, text)
    return Source(
        name=method.name.replace(":", "_"),
        spec=f"{METHOD_FILE}:{function}" if function else METHOD_FILE,
        summary=module.summary or f"The function `{method.function.__name__}` of {path.name}.",
        settings=method.hyper,
        text=_with_one_import(path.name, text),
        needs=tuple(item for item in module.imports.values() if item.in_kit),
    )


def _text_of(path: Path) -> str:
    """The text of a Python file in whatever encoding; what declares one is left out: it travels as UTF-8."""
    try:
        with tokenize.open(path) as file:
            lines = file.read().split("\n")
    except (SyntaxError, UnicodeDecodeError) as error:  # in a comment, which Python passes over
        raise InputError(f"{path}: is not UTF-8, and names no other encoding: save it as UTF-8") from error
    return "\n".join(["" if _ENCODING.match(line) else line for line in lines[:2]] + lines[2:])


def _check_imports(path: Path, text: str) -> None:
    """InputError where a user's file imports, wherever in it, what is not on Kaggle."""
    travels = [node for node in ast.parse(text).body if not is_main_block(node)]
    nodes = (node for one in travels for node in ast.walk(one))
    for node in (node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)):
        whole = isinstance(node, ast.Import)
        for name in [alias.name for alias in node.names] if whole else [node.module or ""]:
            where = f"{path}, line {node.lineno}"
            if whole and Import(name, "").in_kit:
                raise InputError(f"{where}: an import of the kit inside a function: move it up as from {name} import")
            if name and (beside := _beside(name.partition(".")[0], path.parent)):
                raise InputError(f"{where}: imports {beside}, which does not travel: put what it needs into one file")


def _beside(name: str, folder: Path) -> str | None:
    """The file or folder of a module that only this machine has."""
    if name in _LEFT_BEHIND:
        return name
    if name in sys.stdlib_module_names:
        return None
    if (folder / f"{name}.py").exists():
        return f"{name}.py"
    if not (folder / name).is_dir():
        return None
    installed = PathFinder.find_spec(name)  # a folder without __init__.py yields to a package that is installed
    return None if installed and installed.origin and not (folder / name / "__init__.py").exists() else f"{name}/"


def _mixture(method: Mixture, sources: Sequence[Source]) -> Source:
    """A mixture, each of its components in a file of its own name."""
    names = [part.name.partition(":")[0] for part in method.parts]
    taken = {KIT_MODULE, *sys.stdlib_module_names}  # beside the run its files come before all others
    for name in names:
        if not re.fullmatch(r"\w[\w-]*", name) or name in taken:
            raise InputError(
                f"{method.name}: {name}.py cannot lie beside the notebook, which needs names of letters, digits, - and "
                "_ that are no module's of the kit or of Python: give the file another"
            )
    files = [f"{name}.py" for name in names]
    specs = [":".join([file, *source.spec.split(":")[1:]]) for file, source in zip(files, sources, strict=True)]
    parts = tuple(replace(source, spec=spec) for source, spec in zip(sources, specs, strict=True))
    summary = "\n\n".join(f"- `{part.name}`: {part.summary}" for part in parts)
    needs = tuple(dict.fromkeys(item for part in parts for item in part.needs))
    weights = zip(parts, method.weights, strict=True)
    return Source(method.name, "", summary, method.hyper, "", needs, tuple(weights))


def _with_one_import(file: str, text: str) -> str:
    """The text of a method's file with one import from the kit's one module instead of those from the kit, and without
    what it does as a program. InputError where more than that would go with their lines."""
    lines, tree = text.split("\n"), ast.parse(text)
    from_kit = [node for node in tree.body if isinstance(node, ast.ImportFrom) and Import(node.module, "").in_kit]
    names = {(alias.asname or alias.name, Import(KIT_MODULE, alias.name)) for node in from_kit for alias in node.names}
    for node, after in pairwise(tree.body):
        if node.end_lineno == after.lineno and (node in from_kit or after in from_kit):
            raise InputError(f"{file}, line {after.lineno}: an import from the kit shares its line: give it one alone")
    for node in reversed(tree.body):
        if is_main_block(node) and node.orelse:
            raise InputError(
                f'{file}, line {node.orelse[0].lineno}: the else of `if __name__ == "__main__"` does not travel: '
                "write what it does without a condition"
            )
        if node in from_kit or is_main_block(node):
            lines[node.lineno - 1 : node.end_lineno] = import_lines(names) if node in from_kit[:1] else []
    return "\n".join(lines).strip() + "\n"


def kit_text(source: Source) -> str:
    """The kit's one module: what `submit` and the method need."""
    return flatten([*map(_ROOTS.get, source.roots), *source.needs], f"what a submission of {source.name} needs")


def whole_kit_text(source: Source | None = None) -> str:
    """The same with what every method that comes with the kit needs, and what one's own is advised to import; without a
    source nothing else."""
    others = [item for name in method_names() for item in source_of(name).needs]
    needs = source.needs if source else ()
    return flatten([*_ROOTS.values(), *_ADVISED, *needs, *others], "what any submission needs")


def notebook_cells(source: Source) -> list[Cell]:
    """Explanation, kit, method, run."""
    number = "Three" if not source.parts else len(source.parts) + 2
    parts = f"{number} cells of code: the kit, which is written to a file; the method, which is yours to edit; the run."
    method, run = _method_cells(source), f"{_settings_text(source)}\n{_run_text(source)}"
    return [
        ("markdown", _explanation(source, parts)),
        ("code", f"%%writefile {KIT_MODULE}.py\n{kit_text(source)}"),
        *method,
        ("code", run),
    ]


def attached_cells(source: Source, user: str) -> list[Cell]:
    """Explanation, method, run; the kit is a data set."""
    kit = data_set_of(user)
    number = "Two" if not source.parts else len(source.parts) + 1
    parts = f"{number} cells of code: the method, which is yours to edit; the run. The kit is the data set `{kit}`."
    run = f"""\
import sys
from pathlib import Path

{_settings_text(source)}
# Where below {INPUT_DIR.parent} a data set is mounted differs between accounts.
kit = next(
    (file for depth in range(1, 5) for file in Path("{INPUT_DIR.parent}").glob("*/" * depth + "{KIT_MODULE}.py")), None
)
if kit is None:
    raise FileNotFoundError("no {KIT_MODULE}.py below {INPUT_DIR.parent}: add the data set {kit}")
sys.path.insert(0, str(kit.parent))
{_run_text(source)}"""
    return [("markdown", _explanation(source, parts)), *_method_cells(source), ("code", run)]


def _method_cells(source: Source) -> list[Cell]:
    return [
        ("markdown", f"## The method\n\n{'The only cells' if source.parts else 'The only cell'} to edit."),
        *(("code", f"%%writefile {file}\n{text}") for file, text in source.files.items()),
        ("markdown", "## The run\n\nSettings on top; below them nothing is to be edited."),
    ]


def script_text(source: Source) -> str:
    """One program that writes both modules and calls the kit."""
    about = _explanation(source, "One program: settings, the method, which is yours to edit, and the kit.")
    texts = {f"METHOD{'_' * (i > 0)}{i or ''}": text for i, text in enumerate(source.files.values())}
    constants = "\n".join(f"{name} = {_quoted(text)}\n" for name, text in texts.items())
    writes = "\n".join(
        f'    Path("{file}").write_text({name}, encoding="utf-8")'
        for file, name in zip(source.files, texts, strict=True)
    )
    return f"""\
{_indented(about, "# ")}

import sys
from pathlib import Path

{_settings_text(source)}
{constants}
KIT = {_quoted(kit_text(source))}

if __name__ == "__main__":  # a process for another GPU imports this file, too
    Path("{KIT_MODULE}.py").write_text(KIT, encoding="utf-8")
{writes}
    sys.path.insert(0, str(Path.cwd()))
{_indented(_run_text(source), "    ")}
"""


def _indented(text: str, by: str) -> str:
    return "\n".join((by + line).rstrip() for line in text.splitlines())


def _quoted(text: str) -> str:
    """A text as a literal that reads as the text does."""
    if "'''" not in text:
        return f"r'''{text}'''"
    escaped = text.replace("\\", "\\\\").replace("'''", "\\'\\'\\'")
    return f"'''{escaped}'''"


def cell_text(source: Source) -> str:
    """The kit's cell, for a notebook with an `unlearning` of its own; how to call it stands on top."""
    if source.parts:
        raise InputError(f"--form cell: is for a function of the notebook's own: {source.name} has another form")
    names = ", ".join(sorted(item.name for item in source.needs))
    settings = f", settings={_literal(source.settings)}" if source.settings else ""
    return f"""\
%%writefile {KIT_MODULE}.py
# Below the cell that defines unlearning(net, retain_loader, forget_loader, val_loader), instead of a loop:
#     from {KIT_MODULE} import submit
#     submit(unlearning{settings})
# That uses one GPU. A method in a file of its own, submit("{METHOD_FILE}"), uses all.
# What {source.name} needs is here to be imported: {names or "nothing"}.
{kit_text(source)}"""


def _settings_text(source: Source) -> str:
    return f"""\
SETTINGS = {{
    "n_checkpoints": 512,
    "limit": "7h45m",  # of Kaggle's 8 h: the rest is for starting up and for storing the output
    "seed": 0,
    "dtype": "float16",  # 11.5 GB in all; float32 would need 23 of the 20 GB there are
    "settings": {_literal(source.settings)},  # hyper-parameters of the method that differ from its defaults
}}
"""


def _literal(settings: Mapping[str, Any]) -> str:
    infinite = {name for name, value in settings.items() if isinstance(value, float) and not math.isfinite(value)}
    values = {name: f'float("{value}")' if name in infinite else repr(value) for name, value in settings.items()}
    return "{" + ", ".join(f'"{name}": {value}' for name, value in values.items()) + "}"


def _run_text(source: Source) -> str:
    return f"from {KIT_MODULE} import {', '.join(source.roots)}\n\nsubmit({source.argument}, **SETTINGS)"


def _explanation(source: Source, parts: str) -> str:
    does = (
        "It makes 512 checkpoints in time, on every GPU there is, checks `submission.zip` and says so in its last line."
    )
    return f"""\
# {source.name}: a submission to the NeurIPS 2023 machine unlearning competition

{source.summary}

{textwrap.fill(f"{parts} {does}", 118)}

On Kaggle choose the accelerator GPU T4 x2, switch the internet off, and add the competition's data. Where only its
public stand-in is mounted an empty archive is written: the hidden data comes with the scoring run.

Made by the Unlearning Submission Kit {__version__} (`python -m notebooks.build`)."""


def kernel_metadata(name: str, code_file: str, user: str, data_sets: Sequence[str] = ()) -> str:
    """What `kaggle kernels push` reads beside the notebook: two T4, internet off, the competition's data."""
    slug = re.sub("[^a-z0-9]+", "-", f"unlearning-{name}".lower())[:_SLUG_LENGTH].strip("-")
    return _json(
        id=f"{user}/{slug}",
        title=slug.replace("-", " "),  # Kaggle makes the address of the title, which must be the one in id
        code_file=code_file,
        language="python",
        kernel_type="notebook" if code_file.endswith(".ipynb") else "script",
        is_private=True,
        enable_gpu=True,
        machine_shape="NvidiaTeslaT4",  # without it a P100, which today's torch has no kernels for
        enable_internet=False,
        dataset_sources=list(data_sets),
        competition_sources=[INPUT_DIR.name],
        kernel_sources=[],
    )


def data_set_of(user: str) -> str:
    """The data set with the kit on Kaggle."""
    return f"{user}/{DATA_SET}"


def data_set_metadata(user: str) -> str:
    """What `kaggle datasets create` reads beside the kit."""
    about = f"Unlearning Submission Kit {__version__} as one module. MIT License."
    title = DATA_SET.replace("-", " ")
    return _json(id=data_set_of(user), title=title, description=about, licenses=[{"name": "other"}])


def _json(**facts: Any) -> str:
    return json.dumps(facts, indent=2) + "\n"
