"""Where a dry run happens: one temporary folder that stands for /kaggle, home and /tmp, and is removed at the end."""

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kit.competition import INPUT_DIR
from kit.errors import InputError

INSIDE = Path(__file__).parent / "inside"
TOOLS = ("zip", "nvidia-smi", "wget", "curl", "git", "apt-get", "apt", "conda")
_LONGEST_TEMPORARY = 70  # sockets lie below it, whose paths may have hardly more than 100 characters
_DROPPED = ("PYTHON", "PIP_", "JUPYTER", "IPYTHON", "KAGGLE", "TORCHINDUCTOR", "TRITON", "VIRTUAL_ENV_PROMPT")


@dataclass(frozen=True)
class Sandbox:
    """folder: all of it; kaggle: what stands for /kaggle; namespaces: whether the system itself puts it there."""

    folder: Path
    namespaces: bool
    environment: dict[str, str]

    @property
    def kaggle(self) -> Path:
        return self.folder / "kaggle"

    @property
    def tree(self) -> Path:
        return self.kaggle / "input" / INPUT_DIR.name

    @property
    def events(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def archive(self) -> Path:
        return self.kaggle / "working" / "submission.zip"

    def command(self, *program: str) -> list[str]:
        """`program` as it has to be started to find itself in the sandbox."""
        return _launched(self.folder, self.namespaces, *program)

    def visible(self, path: Path) -> str:
        """A path of the sandbox as the program sees it."""
        return f"/{path.relative_to(self.folder)}" if self.namespaces else str(path)


@contextmanager
def sandbox(
    tree: Path,
    *,
    map_cuda: bool,
    limit_bytes: int,
    namespaces: bool | None = None,
    script: str | None = None,
    inputs: Mapping[str, Path] = {},
) -> Iterator[Sandbox]:
    """A sandbox with the input tree in place.

    map_cuda: programs that ask for CUDA get the CPU. limit_bytes: of all files together and of each one. namespaces:
    None for where the system offers them; True raises InputError where it does not. script: name of a script to be
    run, which belongs to /kaggle/src. inputs: other data that is attached, folders by their names in /kaggle/input.
    """
    long = len(tempfile.gettempdir()) > _LONGEST_TEMPORARY
    folder = Path(tempfile.mkdtemp(prefix="dry-run-", dir="/tmp" if long else None)).resolve()
    try:
        for name in ("kaggle/working", "kaggle/src", "kaggle/input", "tmp", "home", "root", "bin"):
            (folder / name).mkdir(parents=True)
        (folder / "settings.json").write_text(json.dumps({"limit_bytes": limit_bytes}))
        if namespaces is not False:
            there = subprocess.run(_launched(folder, True, "true"), capture_output=True, check=False).returncode == 0
            if namespaces and not there:
                raise InputError(
                    "this system offers no unprivileged mount namespaces: leave out --isolation namespaces"
                )
            namespaces = there
        kaggle = "/kaggle" if namespaces else str(folder / "kaggle")
        settings = {
            "sandbox": str(folder),
            "kaggle": kaggle,
            "redirect": not namespaces,
            "map_cuda": map_cuda,
            "limit_bytes": limit_bytes,
            "writable": ["/tmp"] if namespaces else [],
            "script": f"{kaggle}/src/{script}" if script else None,
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        _write_tools(folder / "bin")
        result = Sandbox(folder, namespaces, _environment(folder, hide_cuda=map_cuda))
        if tree.exists():
            shutil.copytree(tree, result.tree)
        for name, source in inputs.items():
            shutil.copytree(source, result.kaggle / "input" / name)
        yield result
    finally:
        _remove(folder)


def _launched(folder: Path, namespaces: bool, *program: str) -> list[str]:
    kind = "namespaces" if namespaces else "plain"
    return [sys.executable, "-I", str(INSIDE / "launch.py"), str(folder), kind, *program]


def _write_tools(folder: Path) -> None:
    script = INSIDE / "_dry_run" / "tools.py"
    for name in TOOLS:
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{script}" {name} "$@"\n')
        (folder / name).chmod(0o755)


def _environment(folder: Path, *, hide_cuda: bool) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
    home, packages = folder / "home", folder / "packages"
    site_packages = sysconfig.get_path("purelib", vars={"base": str(packages), "platbase": str(packages)})
    search = [str(folder / "bin"), str(Path(sys.executable).parent), kept.get("PATH", os.defpath)]
    return {
        **kept,
        "DRY_RUN": str(folder / "settings.json"),
        "PATH": os.pathsep.join(search),
        "PYTHONPATH": os.pathsep.join([str(INSIDE), site_packages]),
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin for work stand still where others use the machine too
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUSERBASE": site.getuserbase(),
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_DATA_HOME": str(home / ".local"),
        "IPYTHONDIR": str(home / ".ipython"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "MPLCONFIGDIR": str(home / "matplotlib"),
        "TORCH_HOME": str(home / "torch"),
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder / "tmp")),
        # pip asks no index, and keeps what it installs from files in the sandbox
        **{"PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0", "PIP_TIMEOUT": "1", "PIP_NO_INPUT": "1"},
        **{"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_PREFIX": str(packages), "PIP_ROOT_USER_ACTION": "ignore"},
        **{"KAGGLE_KERNEL_RUN_TYPE": "Batch", "KAGGLE_IS_COMPETITION_RERUN": "1"},
        **({"CUDA_VISIBLE_DEVICES": ""} if hide_cuda else {}),
    }


def _remove(folder: Path) -> None:
    """Remove the sandbox, whatever the program did to the permissions in it."""

    def permit(function, path, _) -> None:
        for one in (Path(path).parent, Path(path)):
            if one.is_relative_to(folder) and one.exists() and not one.is_symlink():
                one.chmod(0o700)
        try:
            function(path)
        except OSError:
            return

    shutil.rmtree(folder, onerror=permit)
    if folder.exists():  # a folder that could only be entered after the first pass
        shutil.rmtree(folder, ignore_errors=True)
