"""The direction of imports: kit <- data_stubs <- local_eval <- notebooks; and what the kit may import at all."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ("kit", "data_stubs", "local_eval", "notebooks")
KIT_NEEDS = {"torch", "torchvision", "tqdm", "PIL"}
SOURCES = [path for package in ORDER for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level packages that a file names in any import statement."""
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    later = set(ORDER[ORDER.index(package) + 1 :])
    assert not imported(path) & later
    if package == "kit":
        assert imported(path) <= KIT_NEEDS | {"kit"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", [p for p in SOURCES if p.is_relative_to(ROOT / "kit")], ids=lambda p: p.name)
def test_the_kit_is_written_in_the_syntax_of_python_3_10(path):
    ast.parse(path.read_text(), feature_version=(3, 10))


def test_importing_a_package_prints_nothing_and_starts_nothing():
    code = "import kit.emit, data_stubs, local_eval.evaluate, threading; print(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    assert done.stderr == ""
