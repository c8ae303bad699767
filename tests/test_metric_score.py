"""Epsilon of rates, bins, points, the final score, and what bad input says."""

import math

import numpy as np
import pytest
from reference_metric import epsilon_of_rates

from kit.errors import InputError
from local_eval.metric import (
    MetricSpec,
    bins_as_in_report,
    epsilon_from_rates,
    epsilon_table,
    exact_epsilon,
    final_score,
    forgetting_quality,
    grid_epsilon,
    logit_scaled_confidence,
    points,
    score_samples,
)


def test_epsilon_from_rates_follows_the_definition():
    rates = [0.0, 1e-3, 0.01, 0.3, 0.5, 0.999, 1.0]
    for fpr in rates:
        for fnr in rates:
            got, expected = float(epsilon_from_rates(fpr, fnr)), epsilon_of_rates(fpr, fnr, 1e-5)
            # 1 - delta - rate loses digits in float32 where the rate is near 1
            assert (math.isnan(got) and math.isnan(expected)) or got == pytest.approx(expected, abs=1e-4)


def test_table_holds_every_pair_of_counts():
    table = epsilon_table(7, 5, 1e-5)
    assert table.shape == (8, 6) and table.dtype == np.float32
    assert table[0, 0] == np.inf and table[0, 3] == -1 and table[2, 0] == -1 and table[7, 5] == -1
    assert table[2, 1] == epsilon_from_rates(np.float32(2) / np.float32(7), np.float32(1) / np.float32(5))


def test_bins_of_the_code_and_of_the_report():
    assert MetricSpec().n_bins(512) == 14
    assert MetricSpec(bins=bins_as_in_report).n_bins(512) == 13
    assert MetricSpec().n_bins(2) == 0
    assert forgetting_quality([0.0], 2) == 0


def test_points_halve_from_bin_to_bin():
    epsilon = [0, 0.4999, 0.5, 1.0, 6.49, 6.5, 6.99, 7.0, 50]
    expected = [1, 1, 0.5, 0.25, 2**-12, 2**-13, 2**-13, 0, 0]
    np.testing.assert_array_equal(points(epsilon, 512), expected)
    in_report = points(epsilon, 512, MetricSpec(bins=bins_as_in_report))
    np.testing.assert_array_equal(in_report, [*expected[:5], 0, 0, 0, 0])
    assert forgetting_quality(epsilon, 512) == pytest.approx(np.mean(expected))


def test_final_score_is_a_product_of_ratios():
    assert final_score(0.2, 0.9, 1.0, 0.8, 0.64) == pytest.approx(0.2 * 0.9 * 1.25)
    for bad in ((0.2, 1.5, 1, 1, 1), (0.2, 1, 0, 1, 1), (0.2, 1, 1, 1, 0), (0.2, float("nan"), 1, 1, 1)):
        with pytest.raises(InputError):
            final_score(*bad)


def test_score_samples_puts_everything_together():
    rng = np.random.default_rng(0)
    u, r = rng.normal(size=(64, 50)), rng.normal(size=(80, 50))
    score = score_samples(u, r, ra_u=[0.9, 0.7], ra_r=0.8, ta_u=0.6, ta_r=0.75, attack=exact_epsilon)
    assert (score.n_models, score.n_examples) == (64, 50)
    assert score.retain_ratio == pytest.approx(1.0) and score.test_ratio == pytest.approx(0.8)
    assert score.forgetting_quality == forgetting_quality(exact_epsilon(u, r).epsilon, 64)
    assert score.score == pytest.approx(score.forgetting_quality * 0.8)
    assert score.mean_epsilon == pytest.approx(exact_epsilon(u, r).epsilon.mean())


def test_a_perfect_unlearner_gets_about_a_fifth():
    rng = np.random.default_rng(1)
    u, r = rng.normal(size=(2, 128, 200))
    assert 0.14 < forgetting_quality(grid_epsilon(u, r).epsilon, 128) < 0.22
    assert 1.4 < grid_epsilon(u, r).epsilon.mean() < 1.8


def test_confidence_of_two_classes_is_the_difference_of_logits():
    logits = np.array([[[0.3, -1.2], [2.0, 5.0]]])
    np.testing.assert_allclose(logit_scaled_confidence(logits, [0, 0]), [[1.5, -3.0]], atol=1e-12)
    assert logit_scaled_confidence(logits.astype(np.float16), [0, 1]).dtype == np.float64


GOOD = np.zeros((4, 3)) + np.arange(4)[:, None]


@pytest.mark.parametrize("attack", [exact_epsilon, grid_epsilon])
@pytest.mark.parametrize(
    ("u", "r", "says"),
    [
        (GOOD[0], GOOD, "shape"),
        (GOOD, GOOD[:, :2], "same forget set"),
        (GOOD[:1], GOOD, "at least 2"),
        (GOOD[:, :0], GOOD[:, :0], "empty"),
        (GOOD, np.where(np.eye(4, 3) > 0, np.nan, GOOD), "model 0, example 0"),
        (np.where(np.arange(12).reshape(4, 3) == 7, np.inf, GOOD), GOOD, "model 2, example 1"),
        ([["a", "b"]], GOOD, "numbers"),
    ],
)
def test_bad_samples_are_refused_in_one_line(attack, u, r, says):
    with pytest.raises(InputError, match=says) as error:
        attack(u, r)
    assert "\n" not in str(error.value)


def test_an_endless_grid_is_refused():
    with pytest.raises(InputError, match="exact"):
        grid_epsilon(GOOD * 1e9, GOOD)


@pytest.mark.parametrize(
    ("logits", "labels", "says"),
    [
        (np.zeros((2, 3)), [0, 0, 0], "shape"),
        (np.zeros((1, 2, 3)), [0], "labels"),
        (np.zeros((1, 2, 3)), [0, 3], "3 classes"),
        (np.zeros((1, 2, 3)), [0.0, 1.0], "integers"),
        (np.full((1, 2, 3), np.nan), [0, 1], "model 0, example 0"),
    ],
)
def test_bad_logits_are_refused(logits, labels, says):
    with pytest.raises(InputError, match=says):
        logit_scaled_confidence(logits, labels)


def test_bad_epsilons_and_specs_are_refused():
    with pytest.raises(InputError):
        points([np.nan], 512)
    with pytest.raises(InputError):
        points([0.1], 1)
    for bad in ({"delta": -1}, {"cap": 0}, {"bin_width": 0}, {"range_ratio": 2}, {"grid_buffer": 1e-9}):
        with pytest.raises(InputError):
            MetricSpec(**bad)
