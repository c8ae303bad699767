"""The split of an epsilon and the sentence made of it."""

from functools import partial

import numpy as np
import pytest
from scipy import stats

from benchmarks.bench_diagnosis import KINDS, _fits
from local_eval.audit import diagnose, sentence
from local_eval.audit.differences import discoveries, other_spread, shape_difference, shifted, two_kinds
from local_eval.audit.simulate import simulated_pools
from local_eval.metric import exact_epsilon

EXACT = partial(exact_epsilon, n_threads=1)


def diagnosis(**population):
    u, r = simulated_pools(64, 40, np.random.default_rng(0), **population)
    return diagnose(u, r, attack=EXACT)


@pytest.mark.parametrize("population", [{}, {"shift": 1.0}, {"spread": 0.4}, {"shift": -1.0, "spread": 3.0}])
def test_the_parts_add_up_to_the_epsilon(population):
    d = diagnosis(**population)
    np.testing.assert_allclose(d.from_shift + d.from_spread + d.rest, d.epsilon)
    np.testing.assert_array_equal(
        d.epsilon, EXACT(*simulated_pools(64, 40, np.random.default_rng(0), **population)).epsilon
    )


def test_each_fault_is_found_where_it_was_put():
    shifted, narrow = diagnosis(shift=2.0), diagnosis(spread=0.3)
    assert shifted.from_shift.mean() > 3 * abs(shifted.from_spread.mean())
    assert narrow.from_spread.mean() > 3 * abs(narrow.from_shift.mean())
    assert np.median(shifted.shift) == pytest.approx(2.0, abs=0.3)
    assert np.median(narrow.spread_ratio) == pytest.approx(0.3, abs=0.05)


def test_the_rest_is_what_matched_samples_give():
    null = diagnosis().epsilon.mean()
    for d in (diagnosis(shift=2.0), diagnosis(spread=0.3)):
        assert d.rest.mean() == pytest.approx(null, rel=0.15)


def test_copies_of_one_model_vary_too_little():
    _, r = simulated_pools(64, 40, np.random.default_rng(1))
    d = diagnose(np.repeat(r[:1], 64, axis=0), r, attack=EXACT)
    assert (d.spread_ratio == 0).all() and d.from_spread.mean() > d.from_shift.mean()
    assert "they all give the same confidences" in sentence(d)
    assert "look for a fixed seed" in sentence(d)
    assert (d.rest < 10).all()


@pytest.mark.parametrize(
    ("population", "says", "next_try"),
    [
        ({}, "near what retraining gives", "accuracy and time, or more models"),
        ({"shift": 1.5}, "too sure of the forgotten examples", "forget more"),
        ({"shift": -1.5}, "not sure enough of the forgotten examples", "forget less"),
        (
            {"shift_sd": 2.0},
            "too sure of some examples and not sure enough of others",
            "more training on the retain set",
        ),
        ({"spread": 0.3}, "your 64 checkpoints vary too little between runs", "noise on the weights"),
        ({"spread": 4.0}, "vary too much", "weaker noise"),
    ],
)
def test_the_sentence_names_the_fault_and_what_to_try_next(population, says, next_try):
    text = sentence(diagnosis(**population))
    assert says in text and "\n" not in text
    fault, remedy = text.split("try next: ")
    assert says in fault and next_try in remedy


@pytest.mark.parametrize("kind", KINDS)
def test_a_known_fault_is_named(kind):
    """With 48 models; shares over more draws and sizes are in the record of benchmarks.bench_diagnosis."""
    draw, words = KINDS[kind]
    said = sentence(diagnose(*draw(np.random.default_rng(3), 48), attack=EXACT))
    assert _fits(said, words), said


def test_few_models_are_never_called_near_retraining():
    u, r = simulated_pools(12, 40, np.random.default_rng(0))
    assert "says little; try next: more models" in sentence(diagnose(u, r, attack=EXACT))


def test_discoveries_are_those_of_benjamini_and_hochberg():
    p = np.concatenate([np.random.default_rng(0).random(80), np.geomspace(1e-9, 1e-2, 20)])
    np.testing.assert_array_equal(discoveries(p, 0.05), stats.false_discovery_control(p) <= 0.05)
    assert not discoveries(np.ones(5)).any() and discoveries(np.zeros(5)).all()


def test_models_of_one_kind_stay_one_kind_and_chance_has_no_shape():
    for seed in range(20):
        u, r = simulated_pools(32, 60, np.random.default_rng(seed), common=0.2)
        assert two_kinds(u, r) == 0
        assert abs(shape_difference(u, r)) < 5
        assert shifted(u, r).sum() <= 3 and other_spread(u, r).sum() <= 3
