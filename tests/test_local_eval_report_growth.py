"""Pages of large forget sets: what is drawn and told stays as much, however many examples there are."""

import importlib
from functools import partial

import numpy as np
import pytest

from benchmarks.bench_page import drawn, page_of
from local_eval.audit.diagnosis import Diagnosis
from local_eval.audit.findings import find
from local_eval.report import plots
from local_eval.report.html import picture


@pytest.fixture(autouse=True)
def quick_prediction(monkeypatch):
    assess = importlib.import_module("local_eval.assess")  # a function of that name stands before it
    monkeypatch.setattr(assess, "predict_quality", partial(assess.predict_quality, n_simulated=20, n_refits=2))


@pytest.mark.slow
def test_a_page_hardly_grows_with_the_examples(tmp_path):
    few, many = (page_of(drawn(n_examples, 8, tmp_path / str(n_examples))) for n_examples in (150, 4000))
    assert many.stat().st_size < 1.5 * few.stat().st_size
    elements = [page.read_text(encoding="utf-8").count("<") for page in (few, many)]
    assert elements[1] < 1.3 * elements[0]


def test_points_of_many_examples_are_one_picture():
    rng = np.random.default_rng(0)
    sizes = []
    for n_examples in (3001, 30_000):
        u, r = rng.normal(size=(2, 16, n_examples))
        parts = np.zeros((4, n_examples))
        shift, spread = u.mean(axis=0) - r.mean(axis=0), u.std(axis=0) / r.std(axis=0)
        found = Diagnosis(*parts, shift, spread, 16, find(u[:, :50], r[:, :50]), None, None)
        sizes.append(len(picture(plots.faults(found), "", "")["svg"]))
    assert sizes[1] < 2 * sizes[0] < 400_000
