"""The direction of imports: kit <- data_stubs <- local_eval <- notebooks; and what the kit may import at all."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kit import competition
from local_eval.metric import spec as metric_spec

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


def test_scoring_arrays_imports_no_torch(tmp_path):
    rng = np.random.default_rng(0)
    u, r = rng.normal(size=(2, 6, 12))
    np.savez(tmp_path / "c.npz", unlearned_confidence=u, retrained_confidence=r)
    logits = rng.normal(size=(2, 6, 12, 3))
    np.savez(tmp_path / "l.npz", unlearned=logits[0], retrained=logits[1], labels=np.arange(12) % 3)
    code = (
        "import sys; from local_eval.__main__ import main; code = main(sys.argv[1:], own_process=True); "
        "print(*sorted({'torch', 'torchvision', 'sklearn', 'matplotlib', 'PIL'} & set(sys.modules)), file=sys.stderr); "
        "sys.exit(code)"
    )
    for given in (["--confidences", "c.npz"], ["--logits", "l.npz", "--json"]):
        command = [sys.executable, "-c", code, "score", *given, "--quiet"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert "forgetting" in done.stdout
        assert done.stderr == "\n"


def test_a_submission_has_one_size():
    assert metric_spec.N_CHECKPOINTS == competition.N_CHECKPOINTS
