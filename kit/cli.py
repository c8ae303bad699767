"""What every command line of the project shares: errors as one line, exit codes, answers as text or JSON."""

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from kit.errors import InputError, printable

_CONTINUES = "what is finished is kept; the same command continues"
NOTHING_LEFT = "it leaves nothing behind"  # for set_defaults(interrupted=...) of commands that only look

Command = Callable[[argparse.Namespace], int]


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parse and run the chosen command, kept under `args.command`. 0 done, 1 a check failed, 2 a mistake to mend,
    130 interrupted, 143 told to end."""
    args = parser.parse_args(argv)
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if main else None
    try:
        return args.command(args)
    except InputError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"interrupted: {getattr(args, 'interrupted', _CONTINUES)}", file=sys.stderr)
        return 143 if stop.args else 130
    except BrokenPipeError:
        return 141
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: Any) -> None:
    """Another program's wish to end is obeyed as Ctrl-C is: everything that is open gets closed."""
    raise KeyboardInterrupt(number)


def later(module: str, function: str) -> Command:
    """The command that a function of a module does, which is imported only when the command runs: torch takes seconds.
    In a process of its own (`args.own_process`) memory is then kept as in the processes that train."""
    return partial(_imported, module, function)


def _imported(module: str, function: str, args: argparse.Namespace) -> int:
    command = getattr(import_module(module), function)
    if args.own_process:
        from kit.device import keep_freed_memory

        keep_freed_memory()
    return command(args)


def process_age_s() -> float:
    """Seconds since this process was started; 0 where the system does not tell."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def answer(args: argparse.Namespace, facts: dict[str, Any], lines: Sequence[str]) -> None:
    """Print `facts` as one JSON object with --json, else `lines`."""
    print(json.dumps(facts) if args.json else "\n".join(lines))


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def common(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Options that every command has."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser
