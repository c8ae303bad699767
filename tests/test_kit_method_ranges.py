"""Where a search looks for hyper-parameters: around the defaults, and where records found the best ones."""

import json
from importlib import import_module
from pathlib import Path

import pytest

from kit.methods import get_method, method_names

RESULTS = Path(__file__).parents[1] / "benchmarks/results"


def outside(name, values):
    """Those of the values, by hyper-parameter, that are outside the ranges of the method."""
    ranges = getattr(import_module(f"kit.methods.{name}"), "RANGES", {})
    return {key: (values[key], span) for key, span in ranges.items() if key in values and not inside(values[key], span)}


def inside(value, span):
    return value in span if isinstance(span, list) else span[0] <= value <= span[1]


@pytest.mark.parametrize("name", method_names())
def test_every_default_lies_within_its_range(name):
    assert not outside(name, get_method(name).defaults)


@pytest.mark.parametrize("kind", ["random", "class"])
def test_the_best_points_of_the_recorded_sweeps_lie_within_the_ranges(kind):
    sweeps = json.loads((RESULTS / f"sweeps_{kind}.json").read_text())["results"]
    assert not {name: out for name, found in sweeps.items() if (out := outside(name, told(name, found["best"])))}


def told(name, settings):
    """What these settings, `name=value` texts, set."""
    return get_method(name, settings).hyper


def test_the_best_eps_recorded_for_networks_is_near_the_default_of_ssse():
    record = json.loads((RESULTS / "seeds_ssse_resnet20.json").read_text())["results"]
    default = get_method("ssse").defaults["eps"]
    found = [form["best"]["eps"] for form in record["by_form"].values()]
    assert all(default / 3 < eps < 3 * default for eps in found)
