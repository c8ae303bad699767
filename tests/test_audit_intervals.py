"""Intervals beside what theory or brute force says of them."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binom

from kit.errors import InputError
from local_eval.audit import (
    Accuracies,
    Interval,
    epsilon_lower_bounds,
    null_quality,
    predict_quality,
    probability_above,
    quality_interval,
    ranking_warning,
    ratio_interval,
    resample,
    score_interval,
    share_of_attainable,
)
from local_eval.audit.expected import expected_at_512
from local_eval.audit.intervals import _variance_of_ratios, log_interval, ratio_variance, times_ratio
from local_eval.audit.lower_bounds import bound_table, epsilon_of_rates, upper_rate
from local_eval.audit.predict import RANKING, fit, shrunk
from local_eval.audit.resampling import Resamples, variance_of_mean
from local_eval.audit.simulate import simulated_pools
from local_eval.metric import exact_epsilon, forgetting_quality

EXACT = partial(exact_epsilon, n_workers=1)


def resamples_of(points, parts):
    rows = np.zeros((len(parts), 2), int)
    return Resamples(np.asarray(points, float), np.asarray(parts, float), rows, rows)


def flat_accuracies(n=10, value=0.8):
    same = np.full(n, value)
    return Accuracies(same, same, same, same)


def test_a_bound_that_says_nothing_is_0_and_no_nan():
    assert epsilon_of_rates(1.0, 1.0, 1e-5) == 0


class TestVariance:
    def test_independent_examples_give_the_variance_of_a_plain_mean(self):
        rng = np.random.default_rng(0)
        values = rng.random(50)
        parts = np.repeat(values[None], 10, axis=0)  # models have no pull at all
        assert variance_of_mean(values, parts, 3.0) == pytest.approx(values.var(ddof=1) / 50)

    def test_a_common_pull_of_the_models_is_added_whole(self):
        rng = np.random.default_rng(1)
        values, pull = rng.random(2000), rng.normal(size=(400, 1))
        expected = values.var(ddof=1) / 2000 + 3 * pull.var(ddof=1) * (1 - 1 / 2000)
        assert variance_of_mean(values, values + pull, 3.0) == pytest.approx(expected)

    def test_whole_subjects_are_drawn_where_they_are_known(self):
        """Five subjects of 20 examples that share all their points are five observations, not a hundred."""
        rng = np.random.default_rng(7)
        each, groups = rng.random(40), np.repeat(np.arange(40), 20)
        values = each[groups]
        parts = np.repeat(values[None], 10, axis=0)
        assert variance_of_mean(values, parts, 3.0, groups) == pytest.approx(each.var(ddof=1) / 40)
        alone = variance_of_mean(values, parts, 3.0, np.arange(len(values)))
        assert alone == pytest.approx(variance_of_mean(values, parts, 3.0))
        with pytest.raises(InputError, match="one subject"):
            variance_of_mean(values, parts, 3.0, np.zeros(len(values)))

    def test_intervals_over_five_subjects_cover_what_those_over_their_examples_miss(self):
        rng, groups, covered = np.random.default_rng(8), np.repeat(np.arange(5), 20), {True: 0, False: 0}
        for _ in range(200):
            values = 1 + 0.3 * rng.normal(size=5)[groups] + 0.1 * rng.normal(size=100)
            parts = np.repeat(values[None], 10, axis=0)
            for known in covered:
                resamples = Resamples(values, parts, *np.zeros((2, 10, 2), int), 3.0, groups if known else None)
                interval = log_interval(
                    resamples.quality, np.sqrt(resamples.quality_variance), n_parts=resamples.n_parts
                )
                covered[known] += interval.low <= 1 <= interval.high
        assert covered[False] < 120 and covered[True] > 180

    def test_it_matches_the_true_variance_of_a_mean_of_means(self):
        """An oracle with a known answer: points that are means over models, of a common and an own part."""
        rng = np.random.default_rng(2)
        n_models, n_examples, sd_common, sd_own, sd_example = 64, 40, 0.5, 2.0, 0.1
        true = sd_example**2 / n_examples + (sd_common**2 + sd_own**2 / n_examples) / n_models
        found = []
        for _ in range(60):
            models = sd_common * rng.normal(size=(n_models, 1)) + sd_own * rng.normal(size=(n_models, n_examples))
            models += sd_example * rng.normal(size=n_examples)
            parts = np.stack([models[rng.permutation(n_models)[:48]].mean(axis=0) for _ in range(60)])
            found.append(variance_of_mean(models.mean(axis=0), parts, 3.0))
        assert np.mean(found) == pytest.approx(true, rel=0.1)


class TestQuality:
    def test_resampling_is_seeded_and_keeps_parts_without_replacement(self):
        u, r = simulated_pools(20, 15, np.random.default_rng(0))
        first, second = (resample(u, r, attack=EXACT, n_resamples=5, seed=3) for _ in range(2))
        np.testing.assert_array_equal(first.part_points, second.part_points)
        assert first.part_points.shape == (5, 15) and first.unlearned_rows.shape == (5, 15)
        assert all(len(set(rows.tolist())) == 15 for rows in first.unlearned_rows)
        assert first.scale == 3
        assert first.quality == forgetting_quality(EXACT(u, r).epsilon, 20)

    def test_the_interval_is_about_right_in_a_few_repetitions(self):
        rng = np.random.default_rng(5)
        pools = [simulated_pools(32, 60, rng, shift=0.5, shift_sd=0.2, common=0.1) for _ in range(80)]
        truth = np.mean([forgetting_quality(EXACT(u, r).epsilon, 32) for u, r in pools])
        found = [quality_interval(resample(u, r, attack=EXACT, n_resamples=15)) for u, r in pools[:40]]
        assert np.mean([i.low <= truth <= i.high for i in found]) >= 0.85
        assert all(i.low < i.value < i.high <= 1 for i in found)

    def test_no_points_at_all_still_have_an_upper_end(self):
        interval = quality_interval(resamples_of(np.zeros(100), np.zeros((5, 100))))
        assert interval.value == interval.low == 0
        assert binom.pmf(0, 100, interval.high) == pytest.approx(0.05)
        subjects = replace(resamples_of(np.zeros(100), np.zeros((5, 100))), groups=np.arange(100) % 9)
        null = SimpleNamespace(points=np.zeros(100), quality=Interval(0.2, 0, 0, 0))
        ends = [
            quality_interval(subjects).high,
            score_interval(subjects, flat_accuracies()).high,
            0.2 * share_of_attainable(subjects, null).high,
        ]
        assert ends == pytest.approx([1 - 0.05 ** (1 / 9)] * 3)

    def test_too_little_to_resample_is_refused(self):
        for shape in ((3, 10), (8, 1)):
            with pytest.raises(InputError):
                resample(np.random.default_rng(0).random(shape), np.random.default_rng(1).random(shape), attack=EXACT)
        with pytest.raises(InputError):
            log_interval(0.0, 1.0)


class TestScore:
    def test_constant_accuracies_leave_the_interval_of_f_times_their_ratio(self):
        u, r = simulated_pools(24, 30, np.random.default_rng(1))
        resamples = resample(u, r, attack=EXACT, n_resamples=8)
        quality = quality_interval(resamples)
        accuracies = Accuracies(np.full(24, 0.6), np.full(24, 0.8), np.full(24, 0.9), np.full(24, 0.9))
        score = score_interval(resamples, accuracies)
        assert score.value == pytest.approx(quality.value * 0.75)
        assert (score.low, score.high) == pytest.approx((quality.low * 0.75, quality.high * 0.75))

    def test_the_ratio_has_the_error_of_the_delta_method(self):
        rng = np.random.default_rng(2)
        u, r = rng.normal(0.7, 0.02, 400), rng.normal(0.8, 0.01, 400)
        interval = ratio_interval(u, r)
        drawn = rng.normal(0.7, 0.001, 10**5) / rng.normal(0.8, 0.0005, 10**5)
        assert interval.standard_error == pytest.approx(drawn.std(), rel=0.15)
        assert interval.low < u.mean() / r.mean() < interval.high

    def test_examples_count_when_they_are_known(self):
        rng = np.random.default_rng(3)
        easy = rng.random(200)
        u, r = (rng.random((30, 200)) < easy).astype(float), (rng.random((30, 200)) < easy).astype(float)
        known, unknown = ratio_interval(u, r), ratio_interval(u.mean(axis=1), r.mean(axis=1))
        assert known.value == unknown.value and known.standard_error > unknown.standard_error

    def test_bad_accuracies_are_refused(self):
        good = np.full(4, 0.5)
        for bad in (np.zeros(4), np.ones(1), np.full(4, np.nan), np.zeros((2, 2, 2))):
            with pytest.raises(InputError):
                Accuracies(good, bad, good, good)
        with pytest.raises(InputError, match="same examples"):
            ratio_interval(np.ones((4, 5)), np.ones((4, 6)))


class TestRank:
    def test_a_method_against_itself_is_even_and_the_two_sides_add_up(self):
        rng = np.random.default_rng(4)
        u, r = simulated_pools(24, 60, rng)
        worse = u + rng.normal(1.0, 0.1, 60)
        first, second = (resample(x, r, attack=EXACT, n_resamples=10) for x in (u, worse))
        assert probability_above(first, first) == 0.5
        assert probability_above(first, second) > 0.95
        assert probability_above(first, second) + probability_above(second, first) == pytest.approx(1)

    def test_accuracies_take_part(self):
        u, r = simulated_pools(24, 60, np.random.default_rng(5))
        resamples = resample(u, r, attack=EXACT, n_resamples=10)
        low = Accuracies(np.full(24, 0.4), np.full(24, 0.8), np.full(24, 0.8), np.full(24, 0.8))
        assert probability_above(resamples, resamples, flat_accuracies(24), low) > 0.99
        none = replace(flat_accuracies(24), test_u=np.zeros_like(flat_accuracies(24).test_u))
        assert probability_above(resamples, resamples, flat_accuracies(24), none) > 0.99

    def test_what_both_methods_share_of_the_accuracies_cancels(self):
        """Same retrained models and images, and two methods that are right on the same ones."""
        rng = np.random.default_rng(8)
        u, r = simulated_pools(24, 60, rng)
        first, second = (resample(x, r, attack=EXACT, n_resamples=10) for x in (u, u + 0.3))
        right = (rng.random((24, 40)) < rng.random(40)).astype(float)
        accuracies = Accuracies(*4 * [right])
        alone = probability_above(first, second)
        few_images = probability_above(first, second, accuracies, accuracies)
        assert 0.5 < few_images <= alone
        known = probability_above(first, second, *2 * [Accuracies(*4 * [right.mean(axis=1)])])
        assert few_images == pytest.approx(known)  # which images they were counts for neither

    def test_a_difference_of_accuracies_varies_as_drawing_images_anew_says(self):
        rng = np.random.default_rng(9)
        hard = rng.random(3000)
        both = [(rng.random((16, 3000)) < shade * hard).astype(float) for shade in (0.9, 0.8, 1.0)]

        def ratios(columns):
            one, other, retrained = (x[:, columns] for x in both)
            return np.log(one.mean() / retrained.mean()) - np.log(other.mean() / retrained.mean())

        drawn = np.var([ratios(rng.integers(3000, size=300)) for _ in range(4000)])
        one, other, retrained = (x[:, :300] for x in both)
        still = np.ones(16)
        weighted = [(Accuracies(still, still, x, retrained), sign) for x, sign in ((one, 1.0), (other, -1.0))]
        images = _variance_of_ratios(weighted) - sum(
            x.mean(axis=1).var(ddof=1) / 16 / x.mean() ** 2 for x in (one, other)
        )
        assert images == pytest.approx(drawn, rel=0.35)

    def test_unpaired_resamples_are_refused(self):
        u, r = simulated_pools(24, 20, np.random.default_rng(6))
        first, second = (resample(u, r, attack=EXACT, n_resamples=3, seed=seed) for seed in (0, 1))
        with pytest.raises(InputError, match="one seed"):
            probability_above(first, second)


class TestLowerBounds:
    def test_upper_rate_is_clopper_pearson(self):
        """The definition: at the upper end, so few errors would be seen with probability failure / 2 only."""
        for errors, n in ((0, 20), (3, 20), (19, 20)):
            assert binom.cdf(errors, n, upper_rate(errors, n, 0.1)) == pytest.approx(0.05)
        assert upper_rate(20, 20, 0.1) == 1

    def test_bounds_hold_and_find_what_is_there(self):
        rng = np.random.default_rng(7)
        same = epsilon_lower_bounds(*rng.normal(size=(2, 40, 150)), failure=0.1)
        assert (same.epsilon > 0).mean() <= 0.1 + 3 * np.sqrt(0.09 / 150)
        apart = epsilon_lower_bounds(rng.normal(size=(200, 5)) + 6, rng.normal(size=(200, 5)))
        assert apart.epsilon.min() > 2.5 and apart.n_held_out == (100, 100)
        # no error in 100: the best any bound can say
        best = epsilon_of_rates(upper_rate(0, 100, 0.05), upper_rate(0, 100, 0.05), 1e-5)
        assert apart.epsilon.max() <= best + 1e-12

    def test_the_table_is_symmetric_and_falls_with_errors(self):
        table = bound_table(12, 12, 1e-5, 0.05)
        np.testing.assert_allclose(table, table.T)
        assert (np.diff(table[:6, 0]) <= 1e-12).all() and table.min() == 0

    def test_rates_are_those_of_the_held_out_models(self):
        rng = np.random.default_rng(8)
        bounds = epsilon_lower_bounds(rng.normal(size=(16, 3)) + 3, rng.normal(size=(20, 3)))
        for attack in bounds.attacks:
            positives, negatives = (8, 10) if attack.inside_is_unlearned else (10, 8)
            assert (attack.fnr * positives) % 1 == pytest.approx(0) and (attack.fpr * negatives) % 1 == pytest.approx(0)

    def test_bad_arguments_are_refused(self):
        u, r = np.random.default_rng(0).random((2, 3, 5))
        with pytest.raises(InputError):
            epsilon_lower_bounds(u, r)
        with pytest.raises(InputError):
            epsilon_lower_bounds(np.tile(u, (3, 1)), np.tile(r, (3, 1)), failure=0)


class TestNull:
    def test_it_finds_what_two_retrained_pools_give(self):
        rng = np.random.default_rng(9)
        pools = [simulated_pools(48, 100, rng, common=0.05) for _ in range(12)]
        truth = np.mean([forgetting_quality(EXACT(u, r).epsilon, 48) for u, r in pools])
        nulls = [null_quality(r, attack=EXACT, n_halvings=8, seed=i) for i, (_, r) in enumerate(pools)]
        assert np.mean([null.quality.value for null in nulls]) == pytest.approx(truth, rel=0.08)
        assert nulls[0].n_effect < 1  # the exact form's null falls with the number of models

    def test_a_perfect_unlearner_has_a_share_of_about_one_and_a_poor_one_little(self):
        rng = np.random.default_rng(10)
        u, r = simulated_pools(48, 150, rng)
        null = null_quality(r, attack=EXACT)
        share = share_of_attainable(resample(u, r, attack=EXACT, n_resamples=10), null)
        assert share.low < 1 < share.high
        poor = share_of_attainable(resample(u + 2, r, attack=EXACT, n_resamples=10), null, flat_accuracies(48))
        assert poor.high < 0.8

    def test_bad_pools_are_refused(self):
        with pytest.raises(InputError):
            null_quality(np.random.default_rng(0).random((3, 10)), attack=EXACT)
        null = null_quality(np.random.default_rng(0).normal(size=(16, 10)), attack=EXACT)
        with pytest.raises(InputError):
            share_of_attainable(resamples_of(np.ones(5), np.ones((3, 5))), null)


class TestPrediction:
    def test_it_comes_near_the_score_at_more_models(self):
        rng = np.random.default_rng(11)
        options = {"shift": 0.5, "shift_sd": 0.3}
        truth = np.mean(
            [forgetting_quality(EXACT(*simulated_pools(256, 100, rng, **options)).epsilon, 256) for _ in range(20)]
        )
        found = [
            predict_quality(*simulated_pools(64, 150, rng, **options), 256, attack=EXACT, n_simulated=150, n_refits=4)
            for _ in range(8)
        ]
        assert sum(f.quality.low < truth < f.quality.high for f in found) >= 6
        value, observed, fitted = np.mean([(f.quality.value, f.observed, f.fitted) for f in found], axis=0)
        assert abs(value - truth) < abs(observed - truth) / 5
        assert fitted == pytest.approx(observed, rel=0.1)

    def test_the_fit_returns_samples_like_the_ones_it_saw(self):
        rng = np.random.default_rng(12)
        u, r = simulated_pools(400, 50, rng, shift=1.0, spread=0.5)
        new_u, new_r = fit(u, r, rng)(400, 50)
        assert np.median((new_u.mean(0) - new_r.mean(0)) / new_r.std(0)) == pytest.approx(1.0, abs=0.1)
        assert np.median(new_u.std(0) / new_r.std(0)) == pytest.approx(0.5, abs=0.05)

    def test_shrinking_leaves_the_true_variance(self):
        values = np.random.default_rng(13).normal(3, 2, 500)
        assert shrunk(values, 1.0).var(ddof=1) == pytest.approx(1.0)
        assert np.ptp(shrunk(values, -1.0)) == 0 and shrunk(values, -1.0)[0] == pytest.approx(values.mean())

    @pytest.mark.parametrize("pool", [0, 1])
    @pytest.mark.parametrize("value", [103.27893, 20.0])
    def test_one_constant_example_changes_no_other(self, pool, value):
        pools = simulated_pools(16, 200, np.random.default_rng(3), shift=0.3)
        expected, quality = expected_at_512(*pools), predict_quality(*pools, attack=EXACT, n_refits=3).quality.value
        pools[pool][:, 0] = value
        assert expected_at_512(*pools) == pytest.approx(expected, rel=0.03)
        again = predict_quality(*pools, attack=EXACT, n_refits=3).quality.value
        assert again == pytest.approx(quality, rel=0.15)

    def test_the_score_predicted_has_the_accuracies_error_too(self):
        rng = np.random.default_rng(1)
        accuracies = Accuracies(*((rng.random((16, 40)) < level).astype(float) for level in (0.7, 0.9, 0.7, 0.9)))
        quality = log_interval(0.1, 0.01)
        found = times_ratio(quality, accuracies)
        error = np.sqrt((0.01 / 0.1) ** 2 + ratio_variance(accuracies))
        expected = log_interval(0.1 * accuracies.ratio, 0.1 * accuracies.ratio * error)
        assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
        sure = times_ratio(quality, flat_accuracies())
        assert (sure.value, sure.low, sure.high) == pytest.approx((quality.value, quality.low, quality.high))

    def test_nothing_to_predict_from_is_refused(self):
        u, r = simulated_pools(16, 10, np.random.default_rng(0))
        with pytest.raises(InputError, match="F is 0"):
            predict_quality(u + 100, r, attack=EXACT)
        with pytest.raises(InputError, match="at least 8"):
            predict_quality(u[:4], r[:4], attack=EXACT)

    @pytest.mark.parametrize(
        ("n", "population", "why"),
        [
            (8, {"shift": 4.0}, "the model fitted to the confidences gives an F of"),
            (13, {"shift": 4.0}, "uncertain by a factor"),
        ],
    )
    def test_a_model_that_does_not_give_the_f_seen_predicts_nothing(self, n, population, why):
        u, r = simulated_pools(n, 100, np.random.default_rng(2), **population)
        with pytest.raises(InputError, match=why):
            predict_quality(u, r, attack=EXACT, n_simulated=200, n_refits=6)

    def test_no_prediction_lies_above_what_is_attainable(self):
        u, r = simulated_pools(16, 100, np.random.default_rng(3))
        free = predict_quality(u, r, attack=EXACT, n_simulated=100, n_refits=4).quality
        null = Interval(0.9 * free.value, 0.8 * free.value, 0.95 * free.high, 0.001)
        found = predict_quality(u, r, attack=EXACT, n_simulated=100, n_refits=4, attainable=null).quality
        assert (found.value, found.high) == (null.value, null.high) and found.low == min(free.low, null.value)

    def test_a_small_number_of_models_is_warned_of(self):
        assert ranking_warning(2).startswith("2 models are too few")
        assert "N = 16" in ranking_warning(31) and "roughly" in ranking_warning(64)
        assert ranking_warning(512) is None

    def test_the_warning_says_what_the_record_says(self):
        record = json.loads((Path(__file__).parents[1] / "benchmarks/results/ranking.json").read_text())
        rows = record["results"]["grid"]["by_size"]
        assert {row["n_models"]: (row["pairs_in_right_order"], row["best_method_first"]) for row in rows} == RANKING
