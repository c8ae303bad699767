"""The command line of the kit: python -m kit {emit, profile, verify, methods}."""

import argparse
import time
from pathlib import Path

from kit import __version__
from kit.tools.cli import NOTHING_LEFT, Parser, described, later, positive_int, run

# Nothing here imports torch, so that --help is there at once: a test holds these equal to the constants of the kit.
INPUT_DIR = Path("/kaggle/input/neurips-2023-machine-unlearning")
WORKING_DIR = Path("/kaggle/working")
N_CHECKPOINTS = 512
DTYPES = ("float32", "float16", "bfloat16")
_TREE = "--input tree --method finetune --limit 8h"  # of the examples


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m kit", description=__doc__)
    parser.add_argument("--version", action="version", version=f"kit {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, about: str, example: str) -> argparse.ArgumentParser:
        sub = described(commands, name, about, example)
        sub.set_defaults(command=later("kit.tools.commands", f"run_{name}"))
        return sub

    def method_options(sub: argparse.ArgumentParser) -> None:
        group = sub.add_argument_group("what is made, and how")
        group.add_argument("--input", type=Path, default=INPUT_DIR, help=f"the competition's input tree ({INPUT_DIR})")
        group.add_argument(
            "--method", default="finetune", help="a name, file.py[:function], or 'mixture(NAME=3, NAME=5)' (finetune)"
        )
        group.add_argument(
            "--set", action="append", default=[], metavar="NAME=VALUE", help="a hyper-parameter (the method's own)"
        )
        group.add_argument("--n-models", type=positive_int, default=N_CHECKPOINTS, help="checkpoints (512)")
        group.add_argument("--limit", default="8h", help="time limit for everything, such as 90m or 120s (8h)")
        group.add_argument("--seed", type=int, default=0, help="what the checkpoints' seeds are derived from (0)")
        group.add_argument("--slots", type=positive_int, help="processes on each device (one a GPU, one a core)")
        group.add_argument("--dtype", choices=DTYPES, help="type of the stored weights (the model's own)")
        group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (auto: every GPU, else the CPU)")
        group.add_argument("--batch-size", type=positive_int, default=64, help="images a batch of the loaders (64)")
        group.add_argument("--architecture", default="resnet18", help="file.py:function that builds a net (resnet18)")

    sub = command("emit", "write N unlearned checkpoints into submission.zip inside a time limit", f"{_TREE} --out out")
    method_options(sub)
    sub.add_argument("--out", type=Path, default=WORKING_DIR, help=f"folder of archive and ledger ({WORKING_DIR})")
    sub.add_argument("--work", type=Path, help="folder of checkpoints until they are packed (OUT/checkpoints)")
    sub.add_argument("--fill", action="store_true", help="use the whole limit, with more steps than the method wants")

    sub = command("profile", "time a few checkpoints phase by phase; exit code 0 where N fit the limit", _TREE)
    sub.set_defaults(interrupted=NOTHING_LEFT)
    method_options(sub)
    sub.add_argument("--out", type=Path, default=Path(), help="folder that would hold the archive, for its disk (.)")
    sub.add_argument("--measure", type=positive_int, default=3, metavar="K", help="checkpoints to time (3)")

    sub = command("verify", "check an archive; exit code 0 where every check holds", "out/submission.zip")
    sub.set_defaults(interrupted=NOTHING_LEFT)
    sub.add_argument("archive", type=Path, help="submission.zip, as a run wrote it")
    sub.add_argument("--n-models", type=positive_int, default=N_CHECKPOINTS, help="checkpoints expected (512)")
    sub.add_argument("--original", type=Path, help="original_model.pth, to tell copies of it (not looked for)")
    sub.add_argument("--architecture", default="resnet18", help="file.py:function that builds a net (resnet18)")

    sub = command("methods", "list the methods, or one with its hyper-parameters", "ssd")
    sub.add_argument("name", nargs="?", help="of a method, or file.py[:function]: all that it says (a line of each)")
    return parser


def main(argv: list[str] | None = None, *, spent_s: float = 0.0, own_process: bool = False) -> int:
    """spent_s: seconds that count against a time limit before this call, those of starting Python. own_process: it may
    set how memory is kept."""
    parser = build_parser()
    parser.set_defaults(begun=time.monotonic() - spent_s, own_process=own_process)
    return run(parser, argv)
