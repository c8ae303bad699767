"""python -m kit"""

import os
import sys

from kit.tools.cli import process_age_s
from kit.tools.parser import build_parser, main

__all__ = ["build_parser", "main"]

if __name__ == "__main__":
    code = main(spent_s=process_age_s(), own_process=True)
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where it came closed
        stream.flush()
    os._exit(code)  # nothing is left to do, and taking torch apart can take most of a second of the limit
