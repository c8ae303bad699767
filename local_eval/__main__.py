"""Command line of the local evaluation: python -m local_eval {run, sweep, score, compare, ...}, see --help."""

import os
import sys

if __name__ == "__main__":  # before numpy is imported: its threads wait for each other beside other work
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from kit.tools.cli import run
from local_eval.commands.parser import build_parser


def main(argv: list[str] | None = None, *, own_process: bool = False) -> int:
    """own_process: it may set how memory is kept."""
    parser = build_parser(__doc__)
    argv = sys.argv[1:] if argv is None else argv
    parser.set_defaults(argv=argv, own_process=own_process)
    return run(parser, argv)


if __name__ == "__main__":
    sys.exit(main(own_process=True))
