"""What Kaggle would not allow, or would lose: the network, writing elsewhere, more than the disk holds.

An audit hook sees every file, socket and command that Python touches, however it is reached, and cannot be removed.
"""

import errno
import os
import re
import socket
import sys
import sysconfig
import time
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace

from _dry_run.events import Recorder

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_LOCAL = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "", None)
_MEASURE_EVERY_S = 0.2
_TMP = "/kaggle/tmp"
# Commands that make it, or may: a program of its own is watched by itself.
_MAY_MAKE_TMP = re.compile(r"mkdir\s+(-\S+\s+)*\S*/kaggle/tmp/?(?=[\s;&|\"']|$)|\bpython")
_MEMBER = re.compile(r"unlearned_checkpoint_\d+\.pth")


def install(settings: SimpleNamespace, recorder: Recorder) -> None:
    guard = _Guard(settings, recorder)
    handlers: dict[str, Callable[[tuple], None]] = {
        "open": guard.on_open,
        "os.mkdir": lambda args: os.path.lexists(args[0]) or guard.on_change(args[0], args[2], told=False),
        "os.chdir": lambda args: guard.on_use(args[0]),
        "os.listdir": lambda args: guard.on_use(args[0]),
        "shutil.rmtree": lambda args: guard.on_use(args[0]),
        "os.remove": lambda args: guard.on_change(args[0], args[1]),
        "os.rmdir": lambda args: guard.on_change(args[0], args[1]),
        "os.truncate": lambda args: guard.on_change(args[0], -1),
        "os.rename": lambda args: (guard.on_change(args[0], args[2]), guard.on_change(args[1], args[3])),
        "os.link": lambda args: guard.on_change(args[1], args[3]),
        "os.symlink": lambda args: guard.on_change(args[1], args[2]),
        "socket.connect": guard.on_connect,
        "socket.getaddrinfo": guard.on_lookup,
        "subprocess.Popen": lambda args: guard.on_command(args[1]),
        "os.system": lambda args: guard.on_command(args[0]),
        "os.exec": lambda args: guard.on_command(args[1]),
        "os.posix_spawn": lambda args: guard.on_command(args[1]),
    }

    def hook(event: str, args: tuple) -> None:
        handler = handlers.get(event)
        if handler is not None:
            handler(args)

    sys.addaudithook(hook)


class _Guard:
    def __init__(self, settings: SimpleNamespace, recorder: Recorder):
        self.settings, self.recorder = settings, recorder
        kaggle = settings.kaggle
        self.input, self.tmp, self.tmp_is_there = f"{kaggle}/input", f"{kaggle}/tmp", False
        self.writable = tuple(
            f"{folder}/" for folder in (settings.sandbox, kaggle, *settings.writable, "/dev", "/proc")
        )
        self.packages = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), sys.prefix})
        self._measured_at, self._used = 0.0, 0
        self._cwd = os.getcwd.__wrapped__ if hasattr(os.getcwd, "__wrapped__") else os.getcwd

    def on_open(self, args: tuple) -> None:
        path, _, flags = args
        if isinstance(path, int) or path is None:
            return
        if flags & _WRITING:
            self.on_change(path, -1)
            self._check_space()
            if not self.recorder.in_save and (member := _MEMBER.search(os.path.basename(os.fsdecode(path)))):
                self.recorder.record("member", name=member[0])  # what was saved into memory is written down
        elif os.fsdecode(path).endswith(".png") and self._absolute(path).startswith(self.input):
            self.recorder.note_read()

    def on_change(self, path, dir_fd: int, *, told: bool = True) -> None:
        """A file or folder is written, renamed or removed. told: where that is below a /kaggle/tmp that is missing."""
        if isinstance(path, int) or dir_fd not in (-1, None):  # below a folder that was opened, and checked, before
            return
        absolute = self._absolute(path)
        if absolute.startswith(self.input + "/"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fsdecode(path))
        if absolute.startswith(self.writable):
            if absolute.startswith(f"{self.tmp}/"):
                self._make_tmp(told)
            return
        where = self.recorder.where()
        if where and not absolute.startswith(self.packages):  # libraries try to keep caches beside themselves
            self.recorder.record("write", path=absolute, where=where)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fsdecode(path))

    def on_use(self, path) -> None:
        """A folder is listed, entered or removed."""
        if path is not None and not isinstance(path, int) and f"{self._absolute(path)}/".startswith(f"{self.tmp}/"):
            self._make_tmp(told=True)

    def _make_tmp(self, told: bool) -> None:
        """Whether Kaggle's machine has /kaggle/tmp is not known: made here, and told, where a program counts on it."""
        if self.tmp_is_there or os.path.isdir(self.tmp):
            self.tmp_is_there = True
            return
        self.tmp_is_there = True
        with suppress(FileExistsError):  # another process was first
            os.mkdir(self.tmp)
        if told:
            self.recorder.record("unmade", where=self.recorder.where())

    def _absolute(self, path) -> str:
        return os.path.normpath(os.path.join(self._cwd(), os.fsdecode(path)))

    def _check_space(self) -> None:
        """Raise where the sandbox holds more than it may: files are counted at most five times a second."""
        if time.monotonic() - self._measured_at > _MEASURE_EVERY_S:
            self._used = _size(self.settings.kaggle) + _size(f"{self.settings.sandbox}/tmp")
            self._measured_at = time.monotonic()
        if self._used > self.settings.limit_bytes:
            self.recorder.record("full", used=self._used, where=self.recorder.where())
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def on_connect(self, args: tuple) -> None:
        address = args[1]
        if isinstance(address, tuple) and address[0] not in _LOCAL:
            self._offline(address[0])
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    def on_lookup(self, args: tuple) -> None:
        host = args[0].decode() if isinstance(args[0], bytes) else args[0]
        if host not in _LOCAL and host != socket.gethostname():
            self._offline(host)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    def _offline(self, host: str) -> None:
        program = " ".join(os.path.basename(part) for part in sys.orig_argv[:6])
        self.recorder.record("network", host=str(host), program=program, where=self.recorder.where())

    def on_command(self, command) -> None:
        if where := self.recorder.where():
            parts = [command] if isinstance(command, str | bytes | os.PathLike) else list(command or [])
            text = " ".join(os.fsdecode(part) for part in parts)
            text = text.replace(self.settings.kaggle, "/kaggle")
            self.recorder.record("command", text=text[:500], where=where)
            if _TMP in text and not _MAY_MAKE_TMP.search(text):
                self._make_tmp(told=True)


def _size(folder: str) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except OSError:  # gone in the meantime
                continue
    return total
