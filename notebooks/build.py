"""Build notebooks: a method as a submission for Kaggle, and the notebooks that are kept here.

python -m notebooks.build --method finetune --set lr=0.002 --user NAME --out mine/finetune.ipynb [--form FORM]
python -m notebooks.build              build and execute every notebook kept here
python -m notebooks.build --sources    write their sources anew and keep the outputs: seconds
python -m notebooks.build --check      exit code 1 where a source differs from a rebuild

Forms: `notebook` carries the kit in a cell; `attached` finds it in a data set, which is built beside it; `script` is
one program; `cell` is the kit's cell alone, for a notebook that has its own `unlearning`. The notebooks kept here come
from the scripts beside them (percent format) or, as submissions, from the methods of the kit.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from kit.tools.cli import Parser, later
from kit.tools.cli import run as run_command

FORMS = {"notebook": ".ipynb", "attached": ".ipynb", "script": ".py", "cell": ".py"}
USER = "your-name"  # where none is known


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m notebooks.build", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="notebooks kept here (all)")
    parser.add_argument("--check", action="store_true", help="compare only; exit code 1 where one differs")
    parser.add_argument("--sources", action="store_true", help="renew the sources only, outputs stay as they are")
    parser.add_argument("--method", help="a name, file.py[:function] or a mixture: build its submission (what is kept)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a hyper-parameter (the method's own)"
    )
    parser.add_argument("--form", choices=FORMS, default="notebook", help="what is built (notebook)")
    parser.add_argument("--out", type=Path, help="file to write (below runs/submissions; a cell is printed)")
    parser.add_argument("--user", metavar="NAME", help="your name on Kaggle (KAGGLE_USERNAME, or that in kaggle.json)")
    parser.set_defaults(command=later("notebooks.kept", "command"), own_process=argv is None)
    parser.set_defaults(options=parser._option_string_actions)
    return run_command(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
