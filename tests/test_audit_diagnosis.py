"""The split of an epsilon and the sentence made of it."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_ind

from local_eval.audit import diagnose, null_quality, sentence
from local_eval.audit.findings import _p_of_means, find
from local_eval.audit.simulate import heavy_tailed, simulated_pools
from local_eval.metric import exact_epsilon

EXACT = partial(exact_epsilon, n_workers=1)


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


def said(u, r):
    """The sentence where the null is known."""
    return sentence(diagnose(u, r, attack=EXACT, null=null_quality(r, attack=EXACT, n_halvings=4, n_simulated=100)))


def with_residuals(residuals, n_models=64, n_examples=60):
    rng = np.random.default_rng(2)
    mean, size = rng.normal(3, 2, n_examples), (n_models, n_examples)
    return mean + residuals(rng, size), mean + rng.normal(size=size)


def test_another_shape_of_the_same_mean_and_spread_gets_no_all_clear():
    humps = with_residuals(lambda rng, size: 0.9 * rng.choice([-1, 1], size=size) + 0.436 * rng.normal(size=size))
    assert "another shape" in said(*humps) and "two humps" in said(*humps)
    assert "one-sided, with a longer tail above" in said(
        *with_residuals(lambda rng, size: rng.exponential(size=size) - 1)
    )
    assert "one-sided, with a longer tail below" in said(
        *with_residuals(lambda rng, size: 1 - rng.exponential(size=size))
    )


def test_two_kinds_of_checkpoints_are_told_from_two_humps_of_each_example():
    sign = np.repeat([-0.9, 0.9], [40, 24])[:, None]
    u, r = with_residuals(lambda rng, size: sign + 0.436 * rng.normal(size=size))
    assert "are of two kinds, 40 and 24 of them" in said(u, r)
    pulled = simulated_pools(64, 60, np.random.default_rng(3), common=0.4)
    assert "near what retraining gives" in said(*pulled), "a common pull is no second kind"


@pytest.mark.parametrize(("n_off", "shift"), [(9, 5.0), (12, 5.0), (24, 3.0), (1, 6.0)])
def test_examples_that_are_not_forgotten_are_counted_and_the_others_do_not_vote(n_off, shift):
    u, r = simulated_pools(64, 60, np.random.default_rng(4))
    u[:, :n_off] += shift * r[:, :n_off].std(axis=0)
    text = said(u, r)
    assert f"do not treat {n_off} of 60 examples as retraining does" in text and "too sure of them" in text
    found = find(u, r)
    np.testing.assert_array_equal(np.flatnonzero(found.off), np.arange(n_off))


def test_chance_is_no_finding():
    alarms = 0
    for seed in range(40):
        found = find(*simulated_pools(32, 50, np.random.default_rng(seed), common=0.2, noise=heavy_tailed))
        alarms += found.off.any() or found.shift or found.spread or found.shape or found.kinds is not None
    assert alarms <= 4


def test_no_all_clear_below_16_models_nor_far_below_the_null():
    few = said(*simulated_pools(12, 60, np.random.default_rng(5)))
    assert "fewer than 16" in few and "near what retraining gives" not in few
    d = replace(diagnosis(), share=0.05)
    assert "reach 5% of what retraining gets" in sentence(d) and "near" not in sentence(d)


def test_the_test_of_means_is_welchs():
    u, r = np.random.default_rng(6).normal(size=(2, 20, 7))
    np.testing.assert_allclose(_p_of_means(u, r[:15]), ttest_ind(u, r[:15], equal_var=False).pvalue)


def test_the_record_of_known_truths_is_whole_and_right():
    results = json.loads((Path(__file__).parents[1] / "benchmarks/results/diagnosis.json").read_text())["results"]
    assert results["draws"] >= 20 and len({row["kind"] for row in results["kinds"]}) >= 12
    assert {row["n_models"] for row in results["kinds"]} == {32, 512}
    assert min(results["right"], results["right_at_32"], results["right_at_512"]) >= 0.95


def test_an_example_on_which_retrained_models_agree_wholly_has_a_finite_shift():
    u, r = simulated_pools(32, 60, np.random.default_rng(0))
    for value in (100.0, 103.27893):
        r[:, 0] = value
        found = diagnose(u, r, attack=EXACT)
        assert np.isfinite(found.shift).all() and np.isfinite(found.spread_ratio).all()
        assert found.shift[0] == pytest.approx((u[:, 0].mean() - value) / np.median(r[:, 1:].std(axis=0, ddof=1)))
        assert "inf" not in sentence(found)
    r[:] = u[:1]
    assert np.isfinite(diagnose(u, r, attack=EXACT).shift).all()
