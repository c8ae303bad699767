"""Paths below /kaggle lead into the sandbox, where the system offers no mount namespace to put it there.

Every way from Python to the file system goes through a handful of functions, which are wrapped here: a path that
begins with /kaggle is replaced on the way in and put back on the way out. Commands are rewritten as text.
"""

import builtins
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import ModuleType, SimpleNamespace

KAGGLE = "/kaggle"
_IN_TEXT = re.compile(r"(?<![\w./-])/kaggle(?![\w.-])")
ONE_PATH = (
    *("access", "chdir", "chmod", "chown", "lchown", "listdir", "lstat", "mkdir", "mkfifo", "open", "pathconf"),
    *("readlink", "remove", "rmdir", "stat", "statvfs", "truncate", "unlink", "utime"),
    *("getxattr", "listxattr", "setxattr"),
)
TWO_PATHS = ("link", "rename", "replace", "symlink")
LIBRARIES = {  # functions of compiled libraries that take a path first (True), or after what they write (False)
    "torch.serialization": [("load", True), ("save", False)],
    "torch.jit": [("load", True), ("save", False)],
    "torchvision.io.image": [("read_file", True), ("write_file", True)],
    "cv2": [("imread", True), ("imwrite", True)],
    "safetensors.torch": [("load_file", True), ("save_file", False)],
}


class Redirect:
    """Paths as the program writes them <-> paths as they are. New files of /tmp come into the sandbox too."""

    def __init__(self, settings: SimpleNamespace):
        self.root, self.sandbox = settings.kaggle, settings.sandbox

    def inward(self, path):
        """The real path of one that may begin with /kaggle; anything else unchanged."""
        try:
            text = os.fspath(path)
        except TypeError:
            return path
        if isinstance(text, bytes):
            return os.fsencode(self.inward(os.fsdecode(text)))
        if text == KAGGLE or text.startswith(KAGGLE + "/"):
            return self.root + text[len(KAGGLE) :]
        if text.startswith("/tmp/") and not text.startswith(self.sandbox) and not _is_there(text):
            return self.sandbox + text
        return path

    def outward(self, path):
        """What the program is told."""
        if isinstance(path, str) and (path == self.root or path.startswith(self.root + "/")):
            return KAGGLE + path[len(self.root) :]
        return path

    def text(self, command):
        """A command, as text or as a list of arguments."""
        if isinstance(command, str):
            return _IN_TEXT.sub(lambda _: self.root, command)
        if isinstance(command, bytes):
            return os.fsencode(self.text(os.fsdecode(command)))
        if isinstance(command, os.PathLike):
            return self.inward(command)
        if isinstance(command, list | tuple):
            return [self.text(part) for part in command]
        return command


_plain_lstat = os.lstat


def _is_there(path: str) -> bool:
    try:
        _plain_lstat(path)
    except OSError:
        return False
    return True


class _Entry:
    """An os.DirEntry whose path is the program's."""

    def __init__(self, entry: os.DirEntry, path: str):
        self._entry, self.path, self.name = entry, path, entry.name

    def __fspath__(self) -> str:
        return self.path

    def __getattr__(self, name: str):
        return getattr(self._entry, name)


class _Scan:
    """An os.scandir iterator of such entries."""

    def __init__(self, entries, redirect: Redirect):
        self._entries, self._redirect = entries, redirect

    def __iter__(self):
        return self

    def __next__(self) -> _Entry:
        entry = next(self._entries)
        return _Entry(entry, self._redirect.outward(entry.path))

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._entries.close()


def install(settings: SimpleNamespace) -> dict[str, Callable[[ModuleType], object]]:
    """Wrap the functions of os and what stands on them; hooks for libraries to be imported are returned."""
    redirect = Redirect(settings)
    _wrap_os(redirect)
    opened = _first(open, redirect)
    builtins.open = io.open = opened
    if sys.version_info < (3, 11):  # pathlib kept functions of its own
        Path("/").exists()
        accessor = getattr(__import__("pathlib"), "_NormalAccessor", None)
        for name in (*ONE_PATH, *TWO_PATHS, "scandir", "getcwd"):
            if hasattr(accessor, name):
                setattr(accessor, name, staticmethod(getattr(os, name)))
    _wrap_commands(redirect)
    hooks = {name: _on_library(functions, redirect) for name, functions in LIBRARIES.items()}
    hooks["IPython.core.magics.script"] = _on_script_magics(redirect)
    return hooks


def _wrap_os(redirect: Redirect) -> None:
    for names, wrap in ((ONE_PATH, _first), (TWO_PATHS, _first_two)):
        for name in names:
            if plain := getattr(os, name, None):
                wrapped = wrap(plain, redirect)
                setattr(os, name, wrapped)
                for supported in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
                    if plain in supported:  # shutil asks whether the function it finds is among these
                        supported.add(wrapped)
    plain_scan, plain_cwd = os.scandir, os.getcwd

    def scandir(path="."):
        found = plain_scan(redirect.inward(path))
        return found if isinstance(path, int) else _Scan(found, redirect)

    os.scandir = scandir
    os.supports_fd.add(scandir)

    @wraps(plain_cwd)
    def getcwd() -> str:
        return redirect.outward(plain_cwd())

    os.getcwd = getcwd


def _first(function: Callable, redirect: Redirect) -> Callable:
    @wraps(function)
    def wrapped(*args, **kwargs):
        if args:
            return function(redirect.inward(args[0]), *args[1:], **kwargs)
        return function(**{name: redirect.inward(value) if name == "path" else value for name, value in kwargs.items()})

    return wrapped


def _first_two(function: Callable, redirect: Redirect) -> Callable:
    @wraps(function)
    def wrapped(src, dst, *args, **kwargs):
        return function(redirect.inward(src), redirect.inward(dst), *args, **kwargs)

    return wrapped


def _second(function: Callable, redirect: Redirect) -> Callable:
    @wraps(function)
    def wrapped(what, path, *args, **kwargs):
        return function(what, redirect.inward(path), *args, **kwargs)

    return wrapped


def _wrap_commands(redirect: Redirect) -> None:
    plain = subprocess.Popen.__init__

    @wraps(plain)
    def popen(self, args, *rest, **options):
        for name in ("cwd", "executable"):
            if options.get(name) is not None:
                options[name] = redirect.inward(options[name])
        return plain(self, redirect.text(args), *rest, **options)

    subprocess.Popen.__init__ = popen

    def texts(function: Callable, first: int) -> Callable:
        """Rewrite the arguments from number `first` on that are texts or lists of texts."""

        @wraps(function)
        def wrapped(*args, **kwargs):
            return function(*args[:first], *map(redirect.text, args[first:]), **kwargs)

        return wrapped

    os.system = texts(os.system, 0)
    for name in ("execv", "execve", "posix_spawn", "posix_spawnp"):
        if hasattr(os, name):
            setattr(os, name, texts(getattr(os, name), 0))


def _on_library(functions: list[tuple[str, bool]], redirect: Redirect) -> Callable[[ModuleType], None]:
    def hook(module: ModuleType) -> None:
        for name, path_first in functions:
            if plain := getattr(module, name, None):
                setattr(module, name, (_first if path_first else _second)(plain, redirect))

    return hook


def _on_script_magics(redirect: Redirect) -> Callable[[ModuleType], None]:
    def hook(module: ModuleType) -> None:
        plain = module.ScriptMagics.shebang

        @wraps(plain)  # with the options that its decorators hung on it
        def shebang(self, line, cell):
            return plain(self, redirect.text(line), redirect.text(cell))

        module.ScriptMagics.shebang = shebang

    return hook
