"""What a run leaves on disk beside its checkpoints: the ledger, JSON lines that are appended as things happen."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kit.errors import InputError

FILE_NAME = "ledger.jsonl"


def check_folder(folder: Path) -> Path:
    """Make a folder to write to, whose path holds wherever a method goes; InputError where it cannot be written."""
    folder = Path(folder).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}): choose another folder") from error
    return folder


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What is written inside to `path` fails, if it does, as one line that says how to go on."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written any more ({error.strerror or error}): what is finished is kept; make room or "
            "bring the folder back, and the same command continues"
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that appears under its name when it is complete, or not at all, whoever else writes it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path):
            with temporary.open("wb") as file:
                file.write(data)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def append(path: Path, event: str, **facts: Any) -> dict[str, Any]:
    """Add the line {"event": event, ...} to a ledger, on disk as far as a killed process is concerned."""
    line = {"event": event, **facts}
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, default=int) + "\n")  # a seed may be an integer of numpy
    return line


class Ledger:
    """The lines of a ledger, several processes may append to it. A last line cut off by a crash is dropped here."""

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: cannot be read ({error}): choose another output folder") from error
        complete = text[: text.rfind("\n") + 1]
        try:
            self.lines: list[dict[str, Any]] = [json.loads(line) for line in complete.splitlines()]
            if not all(isinstance(line, dict) and isinstance(line.get("event"), str) for line in self.lines):
                raise ValueError("a line names no event")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.path}: is no ledger ({error}): choose another output folder") from error
        if complete != text:
            os.truncate(self.path, len(complete.encode()))  # needs no space, where a full disk was the cause

    def append(self, event: str, **facts: Any) -> None:
        self.lines.append(append(self.path, event, **facts))

    def of(self, event: str) -> Iterator[dict[str, Any]]:
        return (line for line in self.lines if line["event"] == event)

    def first(self, event: str) -> dict[str, Any] | None:
        return next(self.of(event), None)
