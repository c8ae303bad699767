"""Execute a program in a sandbox: a notebook in a fresh kernel, a script in a process. Nothing outlives it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from tqdm import tqdm

from kit.budget import format_duration
from kit.competition import N_CHECKPOINTS
from local_eval.dry_run.outcome import (
    Event,
    Fault,
    Outcome,
    checkpoints,
    last_lines,
    place_in_stacks,
    read_events,
    savings,
)
from local_eval.dry_run.program import Program
from local_eval.dry_run.sandbox import INSIDE, Sandbox

_POLL_S = 0.3
_KEPT_FREE_BYTES = 10**9  # of the disk below the sandbox
_MOST_PROCESSES = 400
_GRACE_S = 2.0  # for processes that are about to end
_HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "loky")  # they end with the kernel


def execute(
    program: Program, box: Sandbox, *, timeout_s: float, limit_bytes: int, most_saves: int, progress: bool = True
) -> Outcome:
    """Run the program to its end, or until it exceeds a limit.

    timeout_s: of the whole run; limit_bytes: of the files it writes; most_saves: a program that saves more than that
    many checkpoints is stopped, its number of checkpoints being none that its text tells.
    """
    start = time.monotonic()
    run = _run_script if program.notebook is None else _run_notebook
    with _Watch(box, timeout_s, limit_bytes, most_saves, progress) as watch:
        failure, output, notebook = run(program, box, watch)
    end = time.monotonic()
    events = read_events(box.events)
    left = box.folder / "left.json"
    outcome = Outcome(
        program=program,
        fault=None,
        start_s=start,
        end_s=end,
        events=events,
        output=last_lines(output),
        left=tuple(json.loads(left.read_text())) if left.exists() else (),
        notebook=notebook,
    )
    return replace(outcome, fault=_fault(outcome, box, watch, failure))


def _fault(outcome: Outcome, box: Sandbox, watch: "_Watch", failure: str | None) -> Fault | None:
    settings = json.loads((box.folder / "settings.json").read_text())
    if watch.reason is not None or failure == "died":
        place = place_in_stacks(box.folder / "stacks.txt", outcome.events, settings["script"])
        if place is None and (cells := outcome.of("cell")):
            place = {"cell": cells[-1]["number"], "line": 1}
        if watch.reason is not None:
            return Fault(*watch.reason, outcome.where(place))
        return Fault(
            "died",
            "the process died (killed from outside, out of memory, or a crash of the interpreter)",
            outcome.where(place),
        )
    if failure is None:
        return None
    errors = outcome.of("error")
    if not errors:
        return Fault("crash", failure, "")
    message = errors[-1]["message"].splitlines() or [failure]
    return Fault("crash", message[-1][:500], outcome.where(errors[-1]["where"]))


def _run_notebook(program: Program, box: Sandbox, watch: "_Watch") -> tuple[str | None, str, nbformat.NotebookNode]:
    kernels = box.folder / "kernels"
    (kernels / "dry-run").mkdir(parents=True)
    launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--HistoryManager.enabled=False"]
    spec = {"argv": box.command(*launch), "display_name": "dry run", "language": "python"}
    (kernels / "dry-run" / "kernel.json").write_text(json.dumps(spec))
    manager = AsyncKernelManager(
        kernel_name="dry-run",
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(kernels)], ensure_native_kernel=False),
        transport="ipc",
        ip=str(box.folder / "socket"),
        connection_file=str(box.folder / "connection.json"),
    )
    notebook = nbformat.from_dict(program.notebook)
    client = NotebookClient(
        notebook, km=manager, timeout=None, startup_timeout=300, store_widget_state=False, record_timing=False
    )
    watch.pid = lambda: getattr(manager.provisioner, "pid", None)

    def note_left(notebook: nbformat.NotebookNode) -> None:
        """Before the kernel is shut down, which ends its children."""
        if left := _left_running(manager.provisioner.pid):
            (box.folder / "left.json").write_text(json.dumps(left))

    client.on_notebook_complete = note_left
    failure = None
    options = {"cwd": str(box.kaggle / "working"), "env": box.environment, "stderr": subprocess.STDOUT}
    with (
        (box.folder / "kernel.txt").open("w") as output,  # what does not come through the kernel's own channels
        ThreadPoolExecutor(1) as aside,  # in the main thread it would take Ctrl-C for a kernel that died
    ):
        running = aside.submit(client.execute, stdout=output, **options)
        try:
            running.result()
        except CellExecutionError as error:
            failure = f"{error.ename}: {error.evalue}"
        except (DeadKernelError, RuntimeError) as error:
            failure = "died" if isinstance(error, DeadKernelError) or watch.reason else str(error)
        finally:
            watch.end_program()
            while not running.done():  # interrupted, perhaps before there was a kernel to end
                time.sleep(_POLL_S)
                watch.end_program()
    text = _text_of(notebook)
    return failure, text or (box.folder / "kernel.txt").read_text(errors="replace"), notebook


def _run_script(program: Program, box: Sandbox, watch: "_Watch") -> tuple[str | None, str, None]:
    script = box.kaggle / "src" / program.name
    script.write_text(program.codes[0].text, encoding="utf-8")
    output = box.folder / "output.txt"
    command = box.command(sys.executable, str(INSIDE / "_dry_run" / "script.py"), box.visible(script))
    with output.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=box.environment,
            start_new_session=True,
        )
        watch.pid = lambda: process.pid
        try:
            code = process.wait()
        finally:
            watch.end_program()
    text = output.read_text(errors="replace")
    if code >= 128 or code < 0:
        return "died", text, None
    return (f"it ended with exit code {code}" if code else None), text, None


def _text_of(notebook: nbformat.NotebookNode) -> str:
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                parts.append(output.text)
            elif output.output_type in ("execute_result", "display_data"):
                parts.append(output.data.get("text/plain", "") + "\n")
    return "".join(parts)


class _Watch:
    """A thread that looks at time, disk and processes while the program runs, and ends it beyond a limit."""

    def __init__(self, box: Sandbox, timeout_s: float, limit_bytes: int, most_saves: int, progress: bool):
        self.box, self.timeout_s, self.limit_bytes, self.most_saves = box, timeout_s, limit_bytes, most_saves
        self.reason: tuple[str, str] | None = None
        self.pid: Callable[[], int | None] = lambda: None
        self._bar = tqdm(desc="dry run", unit=" saved", mininterval=1.0, disable=not progress)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "_Watch":
        self._until = time.monotonic() + self.timeout_s
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()
        self._bar.close()
        self.end_program()

    def _look(self) -> None:
        while not self._done.wait(_POLL_S):
            if self.reason is None and (reason := self._exceeded()):
                self.reason = reason
                self._signal(signal.SIGUSR1)  # the stacks are written down
                self._done.wait(1.0)
                self.end_program()

    def _exceeded(self) -> tuple[str, str] | None:
        n_saves = len(checkpoints(savings(read_events(self.box.events))))
        self._bar.update(n_saves - self._bar.n)
        if time.monotonic() > self._until:
            return "timeout", f"it did not end within {format_duration(self.timeout_s)}{self._pace(n_saves)}"
        if (used := _size(self.box.kaggle) + _size(self.box.folder / "tmp")) > 1.05 * self.limit_bytes:
            return "disk", f"it wrote {used / 1e9:.1f} GB where {self.limit_bytes / 1e9:.1f} GB are plenty"
        if shutil.disk_usage(self.box.folder).free < _KEPT_FREE_BYTES:
            return "disk", "the disk below the temporary folder is full"
        if n_saves > self.most_saves:
            return "enough", f"stopped after {n_saves} checkpoints"
        if _n_processes(self.pid()) > _MOST_PROCESSES:
            return "processes", f"it started more than {_MOST_PROCESSES} processes"
        return None

    def _pace(self, n_saves: int) -> str:
        """What the time so far says of 512 checkpoints on this machine."""
        whole = format_duration(self.timeout_s * N_CHECKPOINTS / max(1, n_saves))
        if n_saves:
            return f", after {n_saves} checkpoints: {N_CHECKPOINTS} would take {whole} here"
        seen = how_far(read_events(self.box.events))
        return f", and no checkpoint was saved{seen}: {N_CHECKPOINTS} would take more than {whole} here"

    def _signal(self, number: int) -> None:
        pid = self.pid()
        if pid:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return

    def end_program(self) -> None:
        """End the launcher and, by it, everything below it."""
        self._signal(signal.SIGTERM)


def how_far(events: Sequence[Event]) -> str:
    """How far the last run came that told it, behind a sentence; empty where none did."""
    told = next((event for event in reversed(events) if event["event"] == "progress"), None)
    if told is None:
        return ""
    batches = f"{told['batches']} batches of its first run were seen, {told['seconds'] / told['batches']:.2g} s each"
    if not told["passes"]:
        return f" ({batches}, no whole pass over a loader)"
    size, n = told["passes"]
    return f" ({batches}, {n} pass{'es' * (n != 1)} over {size} images)"


def _size(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size  # noqa: PTH118 - as fast as can be
            except OSError:  # gone in the meantime
                continue
    return total


def _n_processes(pid: int | None) -> int:
    """Processes below one; 0 where there is no /proc."""
    return len(_below(pid)) if pid else 0


def _left_running(launcher: int) -> list[str]:
    """Command lines of what still runs below a kernel, given a moment to end."""
    until = time.monotonic() + _GRACE_S
    while True:
        below = {pid: _command_line(pid) for pid in sorted(_below(launcher))}
        kernel = next((pid for pid, line in below.items() if line and "launch.py" not in line), None)
        own = _command_line(kernel) if kernel else ""  # forked workers of a loader have it too, and end with the kernel
        lines = [line for pid in _below(kernel) if (line := _command_line(pid)) != own] if kernel else []
        left = [line for line in lines if line and not any(word in line for word in _HELPERS)]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.1)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


def _below(pid: int) -> set[int]:
    """Processes below one; none where there is no /proc."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    below, grown = {pid}, True
    while grown:
        found = {child for child, parent in parents.items() if parent in below}
        grown = not found <= below
        below |= found
    return below - {pid}
