"""Command line of the local evaluation: python -m local_eval {run, sweep, score, compare, ...}, see --help."""

import argparse
import sys

from kit.cli import run as run_command
from kit.device import keep_freed_memory
from local_eval.commands import dry_run, pool, report, run, score, steps, sweep, tree

COMMANDS = (run, sweep, steps, pool, tree, score, report, dry_run)  # the order of --help


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m local_eval", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add(commands)
    argv = sys.argv[1:] if argv is None else argv
    parser.set_defaults(argv=argv)
    return run_command(parser, argv)


if __name__ == "__main__":
    keep_freed_memory()  # as in the processes that train
    sys.exit(main())
