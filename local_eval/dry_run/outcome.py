"""How an execution ended, and what was recorded on the way."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import nbformat

from local_eval.dry_run.program import Program

Event = Mapping[str, Any]
MEMBER = re.compile(r"^unlearned_checkpoint_\d+\.pth$")
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in ')
_LAST_LINES = 10
_CHATTER = re.compile(  # the kernel's own and of what it lacks here, not the program's
    r"^NOTE: When using the `ipython kernel`|Ctrl-C will not work|^To exit, you will have to explicitly quit|"
    r"^by either sending .quit|^.quit. from a client, or using|^in UNIX-like environments|"
    r"^To read more about this, see|^To connect another client|^\s*--existing |"
    r"TqdmWarning: IProgress not found|^  from .autonotebook import tqdm"
)
_UNSEEN = {
    **{"reads": 0, "reads_in_all": 0, "first_read": None, "drawn": [], "seen": {}, "largest": None},
    **{"datasets": [], "replaced": [], "altered": None, "nested": []},
    **{"steps": None, "in_train_mode": None, "stored_is_trained": None, "first_nan": None},
}


@dataclass(frozen=True)
class Fault:
    """Why an execution ended early. where: cell and line as words, empty where unknown. Of the kind `enough` it is no
    fault: the dry run had seen the runs that it wanted."""

    kind: str  # crash, died, timeout, disk, processes, enough
    message: str
    where: str


@dataclass(frozen=True)
class Outcome:
    """An execution. start_s, end_s: on the monotonic clock of the events; output: its last lines; left: command lines
    of processes that it left running."""

    program: Program
    fault: Fault | None
    start_s: float
    end_s: float
    events: tuple[Event, ...]
    output: tuple[str, ...]
    left: tuple[str, ...] = ()
    notebook: nbformat.NotebookNode | None = field(default=None, repr=False)

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["event"] == kind]

    @cached_property
    def saves(self) -> list[Event]:
        """The savings that made checkpoints."""
        return checkpoints([{**_UNSEEN, **event} for event in savings(self.events)])

    @property
    def stopped(self) -> bool:
        """Did the dry run end it after as many checkpoints as it wanted?"""
        return self.fault is not None and self.fault.kind == "enough"

    def where(self, place: Event | None) -> str:
        """A recorded place in words: `cell 3, line 7: loss.backward()`."""
        if not place:
            return ""
        number, line = place.get("cell"), place["line"]
        if "file" in place:
            return f"{place['file']}, line {line}"
        text = self.program.line(number, line)
        head = f"cell {number}, line {line}" if number is not None else f"line {line}"
        return f"{head}: {text}" if text else head

    def at(self, place: Event | None) -> str:
        """The same behind a sentence; empty where nothing is known."""
        where = self.where(place)
        return f" at {where}" if where else ""


def savings(events: Sequence[Event]) -> list[Event]:
    """Every saving; one into memory has the path of the member's file that the same process writes after it."""
    found: list[Event] = []
    last: dict[int, int] = {}  # process -> its last saving, where that was into memory
    for event in events:
        if event["event"] == "save":
            last[event["pid"]] = -1 if event.get("path") else len(found)
            found.append(event)
        elif event["event"] == "member" and (index := last.get(event["pid"], -1)) >= 0:
            found[index] = {**found[index], "path": f"/kaggle/{event['name']}"}
            last[event["pid"]] = -1
    return found


def checkpoints(saves: Sequence[Event]) -> list[Event]:
    """The savings among them that made checkpoints: of files named as the archive's members are; without any, of files
    in /kaggle with that word in their names, of files in /kaggle, or into memory. Others are a program's own."""
    to_files = [event for event in saves if "/kaggle/" in (event.get("path") or "")]
    names = [event["path"].rpartition("/")[2] for event in to_files]
    members = [event for event, name in zip(to_files, names, strict=True) if MEMBER.search(name)]
    worded = [event for event, name in zip(to_files, names, strict=True) if "checkpoint" in name]
    return members or worded or to_files or list(saves)


def read_events(path: Path) -> tuple[Event, ...]:
    """The record; a line cut off in the middle is left out."""
    return tuple(_parsed(path.read_text(encoding="utf-8") if path.exists() else ""))


def _parsed(text: str) -> Iterator[Event]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def place_in_stacks(stacks: Path, events: tuple[Event, ...], script: str | None) -> Event | None:
    """Where the program stood when its stacks were written down last: the innermost of its own lines."""
    if not stacks.exists():
        return None
    cells = {event["file"]: event["number"] for event in events if event["event"] == "cell"}
    text = stacks.read_text(encoding="utf-8", errors="replace")
    for thread in reversed(re.split(r"\n(?=(?:Current thread|Thread) )", text)):
        for line in thread.splitlines():
            if (frame := _FRAME.match(line)) and (frame[1] in cells or frame[1] == script):
                place = {"line": int(frame[2])}
                return {**place, "cell": cells[frame[1]]} if frame[1] in cells else place
    return None


def last_lines(text: str) -> tuple[str, ...]:
    """The last lines of an output as a terminal would show them, without colours."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = [line.rpartition("\r")[2].rstrip() for line in plain.replace("\r\n", "\n").split("\n")]
    lines = [line for line in lines if not _CHATTER.search(line)]
    return tuple(line[:200] for line in lines if line)[-_LAST_LINES:]
