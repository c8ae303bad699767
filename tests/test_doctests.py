"""The examples in docstrings are run."""

import doctest
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("kit", "data_stubs", "local_eval", "notebooks")
MODULES = [
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text() and "inside" not in path.parts
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    import_module(name)
    found = doctest.testmod(sys.modules[name])
    assert found.attempted
    assert not found.failed


def test_public_functions_have_an_example():
    assert {"kit.emit", "kit.submit", "kit.tools.profile", "local_eval.api", "data_stubs.arrays"} <= set(MODULES)
