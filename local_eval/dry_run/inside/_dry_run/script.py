"""Runs a script as `python SCRIPT` does, but with its loops led through the watch: `python script.py SCRIPT`."""

import os
import sys
from types import ModuleType


def main(path: str) -> None:
    sys.path[0], sys.argv = os.path.dirname(path), sys.argv[1:]
    from _dry_run.kept import with_loops

    module = sys.modules["__main__"] = ModuleType("__main__")
    module.__file__ = path
    with open(path, "rb") as file:
        tree = with_loops(file.read(), path)
    exec(compile(tree, path, "exec", dont_inherit=True), vars(module))


if __name__ == "__main__":
    main(sys.argv[1])
