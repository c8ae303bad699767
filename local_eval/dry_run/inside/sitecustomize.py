"""Runs when a Python process of a dry run starts, before its program: puts the observation in place."""

import os

if "DRY_RUN" in os.environ:
    try:
        import _dry_run

        _dry_run.install(os.environ["DRY_RUN"])
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(98)
