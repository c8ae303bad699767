"""Stand-ins for programs that notebooks call: zip, nvidia-smi, and those that would need the internet.

Run as `python -I tools.py PROGRAM ARGUMENTS` by small scripts on the PATH.
"""

import json
import os
import sys
import time
import zipfile
from pathlib import Path

GPU = "Tesla T4"


def main(program: str, arguments: list[str]) -> int:
    if program == "zip":
        code = zip_files(arguments)
        _record(program, arguments, code)
        return code
    if program == "nvidia-smi":
        print(f"| NVIDIA-SMI 000.00    CUDA Version: 00.0 |\n| 0  {GPU}    0MiB / 15360MiB |")
        return 0
    print(f"{program}: could not resolve host: the internet is off", file=sys.stderr)
    _record(program, arguments, 6)
    return 6


def _record(program: str, arguments: list[str], code: int) -> None:
    path = os.environ.get("DRY_RUN")
    if path is None:
        return
    settings = json.loads(Path(path).read_text())
    kind = "zip" if program == "zip" else "network"
    facts = {"host": "", "where": None} if kind == "network" else {"code": code}
    text = " ".join([program, *arguments]).replace(settings["kaggle"], "/kaggle")[:300]
    line = {"event": kind, "pid": os.getpid(), "t": time.monotonic(), "program": text, **facts}
    with Path(settings["sandbox"], "events.jsonl").open("a") as events:
        events.write(json.dumps(line) + "\n")


def zip_files(arguments: list[str]) -> int:
    """Info-ZIP's `zip` as far as notebooks use it: zip [-0..-9 -r -j -q -m -D -@ -x PATTERN...] ARCHIVE FILE..."""
    options, rest, excluded = _parse(arguments)
    if not rest:
        print("zip error: Nothing to do!", file=sys.stderr)
        return 16
    archive = Path(rest[0] if Path(rest[0]).suffix else rest[0] + ".zip")
    names = rest[1:] or ([line.rstrip("\n") for line in sys.stdin] if "@" in options else [])
    files, missing = _files(names, "r" in options)
    files = [file for file in files if not any(file.match(pattern) or str(file) == pattern for pattern in excluded)]
    for name in missing:
        print(f"\tzip warning: name not matched: {name}", file=sys.stderr)
    if not files:
        print(f"\nzip error: Nothing to do! ({archive})", file=sys.stderr)
        return 12
    level = next((int(option) for option in reversed(options) if option.isdigit()), 6)
    method = zipfile.ZIP_DEFLATED if level else zipfile.ZIP_STORED
    if "D" in options or "j" in options:
        files = [file for file in files if not file.is_dir()]
    new = {name: file for file in files if (name := member_name(file, "j" in options)) not in ("", ".")}
    partial = archive.with_name(archive.name + ".new")
    with zipfile.ZipFile(partial, "w", method, compresslevel=level or None) as written:
        if archive.exists():
            with zipfile.ZipFile(archive) as old:
                for info in old.infolist():
                    if info.filename not in new:
                        written.writestr(info, old.read(info))
        for name, file in new.items():
            written.write(file, name)
            if "q" not in options:
                print(f"  adding: {name} ({'deflated' if level else 'stored'})")
    partial.replace(archive)
    if "m" in options:
        for file in files:
            if file.is_file():
                file.unlink()
    return 0


def _parse(arguments: list[str]) -> tuple[str, list[str], list[str]]:
    options, rest, excluded = "", [], []
    patterns = False
    for argument in arguments:
        if argument.startswith("--"):
            long = {"--recurse-paths": "r", "--junk-paths": "j", "--quiet": "q", "--move": "m", "--names-stdin": "@"}
            options += long.get(argument, "")
        elif argument.startswith("-") and len(argument) > 1:
            options += argument[1:]
            patterns = "x" in argument
        elif patterns:
            excluded.append(argument)
        else:
            rest.append(argument)
    return options, rest, excluded


def _files(names: list[str], recurse: bool) -> tuple[list[Path], list[str]]:
    files: list[Path] = []
    missing = []
    for name in names:
        path = Path(name)
        found = sorted(Path().glob(name)) if any(c in name for c in "*?[") and not path.is_absolute() else [path]
        found = [one for one in found if os.path.lexists(one)]
        if not found:
            missing.append(name)
        for one in found:
            files.append(one)
            if one.is_dir() and recurse:
                files += sorted(one.rglob("*"))
    return files, missing


def member_name(file: Path, junk_paths: bool) -> str:
    """What zip calls a member: the path without the leading slash; the sandbox's own path is no part of it."""
    if junk_paths:
        return file.name
    text = os.path.normpath(file)
    settings = os.environ.get("DRY_RUN")
    if settings and os.path.isabs(text):
        root = os.path.dirname(json.loads(Path(settings).read_text())["kaggle"])
        text = text.removeprefix(root) if root != "/" else text
    while text.startswith("../"):
        text = text[3:]
    return text.lstrip("/")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
