"""What every result can do: become a table, show itself in a notebook, and be written to a file."""

import csv
import html
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import InputError
from kit.ledger import check_folder, write_atomically

if TYPE_CHECKING:
    from pandas import DataFrame

_LONGEST = 240  # bytes of a file's name: 255 mostly, and it is written under a longer one first
_STYLE = "border-collapse:collapse;font-variant-numeric:tabular-nums"
_CELL = "padding:2px 10px;border-bottom:1px solid #8886;text-align:"


class Result(ABC):
    """A result as rows of a table, sentences and plain values; subclasses say which."""

    @abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """The table: a dict a row, the same keys in each."""

    @abstractmethod
    def sentences(self) -> list[str]:
        """The verdict and what a reader must know, the most important first."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""

    def to_frame(self) -> "DataFrame":
        """The table as a pandas DataFrame; InputError where pandas is not installed."""
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise InputError("to_frame needs pandas: pip install pandas; records() gives the same rows") from error
        return DataFrame(self.records())

    def save(self, path: str | Path) -> Path:
        """Write a file by its ending: .json (everything), .csv (the table) or .html (table and verdict)."""
        path = Path(path)
        writers = {".json": lambda: json.dumps(self.facts(), indent=1) + "\n", ".csv": self._csv, ".html": self._page}
        if path.suffix not in writers:
            raise InputError(f"{path}: cannot be written: choose a name that ends in {', '.join(writers)}")
        check_files(path)
        write_atomically(path, writers[path.suffix]().encode())
        return path

    def _csv(self) -> str:
        return csv_text(self.records())

    def _page(self) -> str:
        title = html.escape(self.sentences()[0])
        style = "body{font:16px/1.5 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em;overflow-x:auto}"
        head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
        style += ":root{color-scheme:light dark}"
        return f"<!doctype html><html lang=en>{head}<style>{style}</style><body>{self._repr_html_()}</body></html>\n"

    def _repr_html_(self) -> str:
        """Verdict and table, for a notebook."""
        first, *others = self.sentences()
        told = f"<p><strong>{html.escape(first)}</strong></p>"
        told += "".join(f"<p>{html.escape(sentence)}</p>" for sentence in others)
        return told + html_table(self.records())


def check_files(*paths: Path | None) -> None:
    """InputError where files that are written at the end cannot be: hours may pass until then."""
    named = set()
    for path in filter(None, paths):
        if len(os.fsencode(path.name)) > _LONGEST:
            raise InputError(f"{path}: the name is too long: choose one of at most {_LONGEST} bytes")
        folder = check_folder(path.parent)
        if path.is_dir():
            raise InputError(f"{path}: is a folder: give the name of a file in it")
        if path.exists() and not path.is_file():  # such as /dev/null, which root would replace by a file
            raise InputError(f"{path}: is a device or a pipe: give the name of a file")
        if (there := folder.resolve() / path.name) in named:  # the later would replace the earlier
            raise InputError(f"{path}: is given for two files: give each a name of its own")
        named.add(there)


def write_csv(path: Path | None, records: Sequence[Mapping[str, Any]]) -> None:
    """The rows as a file, where one is asked for and there are any."""
    if path is not None and records:
        write_atomically(path, csv_text(records).encode())


def csv_text(records: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a header; nothing for what is not known."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()


def html_table(records: Sequence[Mapping[str, Any]]) -> str:
    def cells(values: Iterable[str], tag: str) -> str:
        sides = ("left", *["right"] * len(records[0]))
        both = zip(values, sides, strict=False)
        return "".join(f'<{tag} style="{_CELL}{side}">{html.escape(value)}</{tag}>' for value, side in both)

    head = cells((name.replace("_", " ") for name in records[0]), "th")
    rows = "".join(f"<tr>{cells(map(_text, record.values()), 'td')}</tr>" for record in records)
    return f'<table style="{_STYLE}"><tr>{head}</tr>{rows}</table>'


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
