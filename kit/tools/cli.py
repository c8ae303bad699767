"""What every command line of the project shares: errors as one line, exit codes, answers as text or JSON."""

import argparse
import errno
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from kit.errors import InputError, printable
from kit.memory import keep_freed_memory

_CONTINUES = "what is finished is kept; the same command continues"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OUTSIDE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, *_FULL)  # no mistake in our code
NOTHING_LEFT = "it leaves nothing behind"  # for set_defaults(interrupted=...) of commands that only look

Command = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """A parser that tells a mistake in one line, with the nearest word where one was misspelt."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = getattr(found, "options", ())
            self.error(f"unknown: {' '.join(unknown)}{_nearest(unknown[0].partition('=')[0], options)}")
        return found

    def error(self, message: str) -> NoReturn:
        if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            word, known = choice[1], [name.strip("' ") for name in choice[2].split(",")]
            message = (
                f"{message[: choice.start()]}{word!r} is unknown{_nearest(word, known)}: choose from {', '.join(known)}"
            )
        self.exit(2, f"error: {message}: see {self.prog} --help\n")


def _nearest(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, list(known), n=1)
    return f": did you mean {close[0]}?" if close else ""


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parse and run the chosen command, kept under `args.command`. 0 done, 1 a check failed, 2 a mistake to mend,
    130 interrupted, 143 told to end."""
    args = parser.parse_args(argv)
    args.answers = []
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if main else None
    try:
        with _nothing_printed() if getattr(args, "json", False) else nullcontext():
            code = args.command(args)
        if args.answers:
            print("\n".join(args.answers))
        return code
    except InputError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"interrupted: {getattr(args, 'interrupted', _CONTINUES)}", file=sys.stderr)
        return 143 if stop.args else 130
    except BrokenPipeError:
        return 141
    except OSError as error:
        if error.errno not in _OUTSIDE:
            raise
        where = error.filename or "a file"
        print(f"error: {where}: {error.strerror}: choose another place or mend this one; {_CONTINUES}", file=sys.stderr)
        return 2
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _nothing_printed() -> Iterator[None]:
    """What a method prints goes to standard error, from other processes too, so that the answer stands alone."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


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
    """Print `facts` as one JSON object with --json, at the end of the command; else `lines`."""
    if not args.json:
        print("\n".join(lines))
    elif hasattr(args, "answers"):
        args.answers.append(json.dumps(facts))
    else:  # no command line is run
        print(json.dumps(facts))


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def described(commands: Any, name: str, about: str, example: str) -> argparse.ArgumentParser:
    """A command's parser, which ends its help with an example; `commands` is what add_subparsers gave."""
    sub = commands.add_parser(name, help=about, description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub.epilog = f"example:\n  {sub.prog} {example}"
    return common(sub)


def common(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Options that every command has."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(options=parser._option_string_actions)  # to tell the nearest of a misspelt one
    return parser
