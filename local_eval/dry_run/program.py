"""A notebook or script as a list of cells, and their text as plain Python where it has magics."""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat

from kit.errors import InputError

_PYTHON_MAGICS = ("time", "capture", "timeit", "prun", "writefile", "file", "python", "python3", "py")
_ASSIGNED_MAGIC = re.compile(r"^(\s*[\w.\[\], ]+=\s*)[!%].*$")
_MAGIC = re.compile(r"^(\s*)[!%?].*$")
_MOST_REPAIRS = 50


@dataclass(frozen=True)
class Code:
    """A piece of code. number: which code cell it is, counted from 1 as the kernel counts; None for a script."""

    number: int | None
    text: str

    @property
    def lines(self) -> list[str]:
        """As Python counts them: a form feed ends none."""
        return re.split("\r\n|\r|\n", self.text)

    def tree(self) -> ast.Module | None:
        """Its syntax tree, positions as in `text`; None where it is no Python, a cell of shell commands for instance.

        Lines with magics or shell commands stand as `pass`; so does what cannot be parsed at all, such as a bare
        `pip install`.
        """
        lines = self.lines
        if lines[0].lstrip().startswith("%%"):
            if lines[0].split()[0].lstrip("%") not in _PYTHON_MAGICS:
                return None
            lines[0] = ""
        if self.number is not None:
            lines = [_MAGIC.sub(r"\1pass", _ASSIGNED_MAGIC.sub(r"\1None", line)) for line in lines]
        for _ in range(_MOST_REPAIRS):
            try:
                return ast.parse("\n".join(lines))
            except SyntaxError as error:
                row = (error.lineno or 0) - 1
                if not 0 <= row < len(lines) or lines[row].strip() in ("", "pass") or self.number is None:
                    return None
                lines[row] = lines[row][: len(lines[row]) - len(lines[row].lstrip())] + "pass"
            except ValueError:  # null bytes
                return None
        return None


@dataclass(frozen=True)
class Program:
    """What is to be run. notebook: None for a script."""

    path: Path
    notebook: nbformat.NotebookNode | None
    codes: tuple[Code, ...]

    @property
    def name(self) -> str:
        return self.path.name

    def line(self, number: int | None, line: int) -> str:
        """The text of a line, empty where there is none."""
        for code in self.codes:
            if code.number == number and 0 < line <= len(code.lines):
                return code.lines[line - 1].strip()
        return ""

    def with_codes(self, codes: tuple[Code, ...]) -> "Program":
        """The same program with other texts."""
        if self.notebook is None:
            return Program(self.path, None, codes)
        notebook = nbformat.from_dict(self.notebook)
        for cell, code in zip(_code_cells(notebook), codes, strict=True):
            cell.source = code.text
        return Program(self.path, notebook, codes)


def read_program(path: Path) -> Program:
    """Read an .ipynb or a .py file; InputError for anything else, and for a notebook in another language."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte-order mark
    except FileNotFoundError:
        raise InputError(f"{path}: no such file: give a notebook or a script") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}): give a notebook or a script") from error
    if path.suffix == ".py":
        return Program(path, None, (Code(None, text),))
    if path.suffix != ".ipynb":
        raise InputError(f"{path}: is neither .ipynb nor .py: give a notebook or a script")
    _check_shape(path, text)
    try:
        notebook = nbformat.reads(text, as_version=4)
        if notebook.metadata.get("kernelspec") is None:
            notebook.metadata.pop("kernelspec", None)  # null names no kernel either
        language = str(notebook.metadata.get("kernelspec", {}).get("language") or "python")
        codes = tuple(Code(number, cell.source) for number, cell in enumerate(_code_cells(notebook), start=1))
    except Exception as error:  # nbformat raises many kinds for a broken file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: is no notebook ({reason})") from error
    if language.lower() != "python":
        raise InputError(f"{path}: is a notebook in {language}: only Python is run")
    return Program(path, notebook, codes)


def _check_shape(path: Path, text: str) -> None:
    """InputError that tells JSON which is no whole notebook as what it is; other files are nbformat's to tell."""
    try:
        content = json.loads(text)
    except ValueError:
        return
    if not isinstance(content, dict) or not {"cells", "worksheets"} & set(content):
        raise InputError(f"{path}: is JSON, but no notebook: it has no cells")
    if not isinstance(content.get("metadata"), dict):
        raise InputError(
            f"{path}: is a notebook without `metadata`, in which its kernel is named: Kaggle cannot run it; open it in "
            "Jupyter, choose Python 3 and save it"
        )


def _code_cells(notebook: nbformat.NotebookNode) -> Iterator[nbformat.NotebookNode]:
    """Cells that the kernel counts: those of code that are not empty."""
    return (cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip())
