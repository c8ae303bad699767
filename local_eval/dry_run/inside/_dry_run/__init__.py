"""What a dry run puts into the processes of the notebook: other folders, another device, and a record of what happens.

Standard library only, Python 3.10; nothing of the project is imported here, so that the notebook finds no more than
it would on Kaggle. Everything is installed by `sitecustomize`, in child processes too.
"""

import faulthandler
import json
import signal
from types import SimpleNamespace

from _dry_run import cells, cuda, guard, redirect, seeds, watch
from _dry_run.events import Recorder
from _dry_run.imports import after_import


def install(path: str) -> None:
    """path: JSON with sandbox, kaggle (the folder that stands for /kaggle), redirect, map_cuda, limit_bytes."""
    with open(path) as file:
        settings = SimpleNamespace(**json.load(file))
    recorder = Recorder(settings)
    # The file stays open: a crash of the interpreter and the harness's signal both write the stacks there.
    settings.stacks = open(f"{settings.sandbox}/stacks.txt", "a")  # noqa: SIM115
    faulthandler.enable(settings.stacks)
    faulthandler.register(signal.SIGUSR1, settings.stacks)
    parts = [cells.hooks(recorder), seeds.hooks(recorder), watch.hooks(recorder)]
    if settings.map_cuda:
        parts.append(cuda.hooks())
    if settings.redirect:  # last, so that what is recorded are the program's own paths
        parts.append(redirect.install(settings))
    after_import(parts)
    guard.install(settings, recorder)
