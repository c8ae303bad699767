"""The ledger of a run: JSON lines, one a fact, appended as they happen; an interrupted run is taken up from it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kit.errors import InputError

FILE_NAME = "ledger.jsonl"


class Ledger:
    """Lines {"event": ..., ...} of a file that only grows. A last line cut off by a crash is dropped on opening."""

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
        """Write one line, on disk as far as a killed process is concerned when this returns."""
        line = {"event": event, **facts}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)

    def of(self, event: str) -> Iterator[dict[str, Any]]:
        return (line for line in self.lines if line["event"] == event)

    def first(self, event: str) -> dict[str, Any] | None:
        return next(self.of(event), None)
