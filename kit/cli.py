"""What every command line of the project shares: errors as one line, exit codes, answers as text or JSON."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from kit.errors import InputError

Command = Callable[[argparse.Namespace], int]


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parse and run the chosen command, kept under `args.command`. 0 done, 1 a check failed, 2 a mistake to mend,
    130 interrupted."""
    args = parser.parse_args(argv)
    try:
        return args.command(args)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what is finished is kept; the same command continues", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141


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
