"""Ctrl-C at the moment when a program has begun."""

import os
import signal
import threading
import time
from pathlib import Path


def interrupt_once_begun(folder: Path) -> threading.Thread:
    """Interrupt this process as soon as a file `begun` lies below the folder; gives the thread that waits for it."""

    def begun() -> bool:
        try:
            return any(folder.rglob("begun"))
        except OSError:  # a folder that went while it was looked through
            return False

    def wait() -> None:
        while not begun():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=wait, daemon=True)
    watcher.start()
    return watcher
