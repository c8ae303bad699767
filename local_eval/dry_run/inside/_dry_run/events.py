"""The record of what a notebook does: JSON lines, each with the cell and line that did it."""

import json
import os
import sys
import time
from types import FrameType, SimpleNamespace


class Recorder:
    """Appends to `sandbox/events.jsonl`; `sandbox/reads` grows by one byte an image read."""

    def __init__(self, settings: SimpleNamespace):
        self.settings = settings
        self.cells: dict[str, int] = {}  # file name of a compiled cell -> its execution count
        self.current_cell = 0
        self.in_save = False  # within torch.save
        self._open()
        self._reads = os.open(f"{settings.sandbox}/reads", os.O_RDWR | os.O_APPEND | os.O_CREAT)
        self.forget_reads()

    def record(self, event: str, **facts: object) -> None:
        line = json.dumps({"event": event, "pid": os.getpid(), "t": time.monotonic(), **facts})
        try:
            os.write(self._events, line.encode() + b"\n")
        except OSError:  # a child process that closed all files, on its way to another program
            self._open()
            os.write(self._events, line.encode() + b"\n")

    def _open(self) -> None:
        self._events = os.open(f"{self.settings.sandbox}/events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note_read(self) -> None:
        """An image is read; where the first one was is kept until `forget_reads`."""
        os.write(self._reads, b"x")
        if self.first_read is None:
            self.first_read = self.where()

    def reads(self) -> int:
        """Images read since `forget_reads`, by every process."""
        return self.reads_in_all() - self._reads_before

    def reads_in_all(self) -> int:
        """Images read by now, by every process."""
        return os.fstat(self._reads).st_size

    def forget_reads(self) -> None:
        self._reads_before, self.first_read = self.reads_in_all(), None

    def where(self) -> dict[str, object] | None:
        """Cell (as its execution count) or file, and line, of the innermost frame that is the notebook's own."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if place := self.place(frame.f_code.co_filename, frame.f_lineno):
                return {**place, "function": frame.f_code.co_name}
            frame = frame.f_back
        return None

    def place(self, file: str, line: int) -> dict[str, object] | None:
        """Where a line of a file is in the notebook; None for a file that is not its own."""
        if file in self.cells:
            return {"cell": self.cells[file], "line": line}
        if file == "<timed exec>":  # the body of a %%time cell, which begins after the magic
            return {"cell": self.current_cell, "line": line + 1}
        if file == self.settings.script:
            return {"line": line}
        for root in (self.settings.kaggle, "/kaggle"):
            if file.startswith(root + "/"):
                return {"file": "/kaggle" + file[len(root) :], "line": line}
        return None
