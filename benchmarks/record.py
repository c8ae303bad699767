"""How every benchmark keeps its numbers: one JSON file with the machine, versions, date and command."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or ROOT / "benchmarks" / "results")
FOLDERS = ("--data-root", "--work-dir", "--beside")


def record(name: str, results: dict, argv: Sequence[str]) -> Path:
    """Write benchmarks/results/NAME.json and return its path; argv is the program's sys.argv.

    No host name, user or path is kept: folders after the options of FOLDERS are told as FOLDER. The file appears whole
    or not at all.
    """
    hidden = [i + 1 for i, word in enumerate(argv) if word in FOLDERS]
    words = ["FOLDER" if i in hidden else word for i, word in enumerate(argv)]
    content = {
        "benchmark": name,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", _module(Path(argv[0])), *words[1:]]),
        "machine": machine(),
        "versions": versions(),
        "results": results,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    unfinished = path.with_suffix(".json.part")
    unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    unfinished.replace(path)
    return path


def record_entry(name: str, entry: str, results: dict, argv: Sequence[str], source: str | None = None) -> Path:
    """`record` with these results as one entry beside those that the file has. The data source `source` is
    told as image-folder:PATH."""
    path = RESULTS / f"{name}.json"
    others = json.loads(path.read_text())["results"] if path.exists() else {}
    words = ["image-folder:PATH" if word == source else word for word in argv]
    return record(name, {**others, entry: rounded(results)}, words)


def rounded(value):
    """Four digits of every float, in nested lists and dicts too."""
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _module(program: Path) -> str:
    """benchmarks/seeds/x.py -> benchmarks.seeds.x"""
    return ".".join(program.resolve().relative_to(ROOT).with_suffix("").parts)


def machine() -> dict:
    """CPU model, usable cores, memory in GiB, the one-minute load before us, and a GPU's name if torch sees one."""
    found = {"cpu": _cpu_model(), "cores": _usable_cores(), "memory_gib": _memory_gib()}
    if hasattr(os, "getloadavg"):
        found["load_average"] = round(os.getloadavg()[0], 2)
    gpu = _gpu_name()
    return {**found, "gpu": gpu} if gpu else found


def versions() -> dict:
    found = {"python": platform.python_version()}
    for package in ("numpy", "scipy", "torch", "torchvision", "scikit-learn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _gpu_name() -> str | None:
    torch = sys.modules.get("torch")  # only where the benchmark itself has loaded it
    return torch.cuda.get_device_name(0) if torch is not None and torch.cuda.is_available() else None
