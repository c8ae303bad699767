"""Exact and grid form beside plain implementations of the same definitions."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_metric import exact_by_brute_force, grid_one_by_one, tiled_grid_epsilon

from local_eval.audit.lower_bounds import bound_table
from local_eval.metric import MetricSpec, best_attack, epsilon_table, exact_epsilon, grid_epsilon, points, points_of
from local_eval.metric.counts import Counts
from local_eval.metric.epsilon import Values
from local_eval.metric.grid import LeftEnds, SingleThresholds, right_ends

SPEC = MetricSpec()


@st.composite
def two_samples(draw):
    """Small samples of unequal sizes: tied, constant, separated, heavy-tailed, or anything."""
    n_u, n_r = draw(st.integers(2, 9)), draw(st.integers(2, 9))
    few = st.integers(-3, 3).map(float)
    heavy = st.floats(-30, 30).map(lambda x: x**3)
    values = draw(st.sampled_from([few, heavy, st.floats(-5, 5), st.just(1.0)]))
    u = draw(st.lists(values, min_size=n_u, max_size=n_u))
    r = draw(st.lists(values, min_size=n_r, max_size=n_r))
    shift = draw(st.sampled_from([0.0, 0.0, 0.5, 7.0]))
    return np.array(u), np.array(r) + shift


@settings(max_examples=400, deadline=None)
@given(two_samples())
def test_exact_form_equals_brute_force(case):
    u, r = case
    result = exact_epsilon(u[:, None], r[:, None])
    epsilon, discarded = exact_by_brute_force(u, r)
    assert result.epsilon[0] == pytest.approx(epsilon, abs=2e-5)
    assert result.discarded[0] == discarded


@settings(max_examples=200, deadline=None)
@given(two_samples())
def test_best_attack_attains_the_exact_epsilon(case):
    u, r = case
    spec = MetricSpec(range_ratio=0)
    attack = best_attack(u, r, spec)
    result = exact_epsilon(u[:, None], r[:, None], spec)
    assert result.discarded[0] == (attack is None)
    if attack is None:
        return
    assert attack.epsilon == result.epsilon[0]
    inside, other = (u, r) if attack.inside_is_unlearned else (r, u)
    assert attack.fnr == pytest.approx(1 - np.mean((inside >= attack.lo) & (inside <= attack.hi)))
    assert attack.fpr == pytest.approx(np.mean((other >= attack.lo) & (other <= attack.hi)))
    assert attack.kind in ("single", "window")


@pytest.mark.parametrize("n", [(5, 40), (33, 33), (64, 17), (50, 80)])
@pytest.mark.parametrize("of_bounds", [False, True])
def test_best_attack_is_the_first_of_all_windows(n, of_bounds):
    """Of equal ones a single threshold, then the first: each window counted, whatever blocks are ruled out."""
    rng, (n_u, n_r) = np.random.default_rng(n), n
    table = bound_table(n_r, n_u, 1e-5, 0.05) if of_bounds else epsilon_table(n_r, n_u, 1e-5)
    for name, u, r in families(max(n), rng):
        u, r = u[:n_u], r[:n_r]
        ends = np.unique([*u, *r])
        found = []
        for inside, other, swapped in ((u, r, False), (r, u, True)):
            windows = []
            for i, lo in enumerate(ends):
                for j, hi in enumerate(ends[i:], start=i):
                    misses = int(((inside < lo) | (inside > hi)).sum())
                    false = int(((other >= lo) & (other <= hi)).sum())
                    value = table[(misses, false) if swapped else (false, misses)]
                    windows.append((min(value, 50.0), i == 0 or j == len(ends) - 1, -i, -j))
            found.append(max(windows))
        best = max(found, key=lambda window: window[:2])
        got = best_attack(u, r, MetricSpec(), Values(table))
        if best[0] == -1:
            assert got is None, name
            continue
        assert (got.epsilon, got.kind == "single") == pytest.approx(best[:2]), name
        is_u = bool(found[0][:2] >= found[1][:2])
        assert got.inside_is_unlearned is is_u, name
        _, _, i, j = found[not is_u]
        assert got.lo == (-np.inf if i == 0 else ends[-i]), name
        assert got.hi == (np.inf if -j == len(ends) - 1 else ends[-j]), name


@pytest.mark.parametrize("attack", [exact_epsilon, grid_epsilon])
@pytest.mark.parametrize("spec", [SPEC, MetricSpec(bin_width=0.3, cap=2.2), MetricSpec(bin_width=0.1, range_ratio=0)])
def test_points_by_bins_alone_are_those_of_the_epsilons(attack, spec):
    for n, m in ((9, 9), (33, 20), (64, 64)):
        samples = [(u[:n], r[:m]) for _, u, r in families(max(n, m), np.random.default_rng(n))]
        u, r = (np.stack(sample, axis=1) for sample in zip(*samples, strict=True))
        expected = points(attack(u, r, spec).epsilon, 512, spec)
        assert len(set(expected)) > 2
        np.testing.assert_array_equal(points_of(u, r, 512, spec, attack), expected)


def families(n, rng):
    yield "null", rng.normal(size=n), rng.normal(size=n)
    yield "shift", rng.normal(size=n) + 1, rng.normal(size=n)
    yield "spread", 0.3 * rng.normal(size=n), rng.normal(size=n)
    yield "tight", 0.02 * rng.normal(size=n), 0.03 * rng.normal(size=n)
    yield "wide", 8 * rng.normal(size=n), 5 * rng.normal(size=n)
    yield "heavy tails", rng.standard_t(1.5, size=n), rng.standard_t(1.5, size=n)
    yield "ties", rng.normal(size=n).round(1), rng.normal(size=n).round(1)
    yield "quarters", (4 * rng.normal(size=n)).round() / 4, (4 * rng.normal(size=n)).round() / 4
    yield "separated", rng.normal(size=n), rng.normal(size=n) + 20
    yield "constant", np.zeros(n), rng.normal(size=n)


@pytest.mark.parametrize("n", [8, 33])
def test_grid_form_equals_the_tiled_one(n):
    for name, u, r in families(n, np.random.default_rng(n)):
        got = grid_epsilon(u[:, None], r[:, None]).epsilon[0]
        assert got == pytest.approx(tiled_grid_epsilon(u, r), abs=1e-6), name


def test_of_equal_ranges_the_sample_with_the_smaller_median_is_the_peaky_one():
    low, high = np.array([0.0, 0.0, 1.0]), np.array([1.0, 1.0, 2.0])
    for u, r in ((low, high), (high, low), (low, low[::-1]), (-low, -high), (-high, -low)):
        got = grid_epsilon(u[:, None], r[:, None]).epsilon[0]
        assert got == pytest.approx(tiled_grid_epsilon(u, r), abs=1e-6)
    assert grid_epsilon(low[:, None], high[:, None]).epsilon[0] == 0  # the released code's value
    rng = np.random.default_rng(0)
    for _ in range(60):  # halves and quarters are exact in binary: the ranges are equal to the bit
        u, r = (rng.integers(0, 5, size=8) / 2 for _ in range(2))
        u[:2] = r[:2] = 0.0, 2.0
        shift = rng.integers(-2, 3) / 4
        got = grid_epsilon(u[:, None], r[:, None] + shift).epsilon[0]
        assert got == pytest.approx(tiled_grid_epsilon(u, r + shift), abs=1e-6)


@settings(max_examples=10, deadline=None)
@given(two_samples())
def test_grid_form_equals_the_tiled_one_on_odd_samples(case):
    u, r = case
    if max(np.ptp(u), np.ptp(r)) < 100:
        assert grid_epsilon(u[:, None], r[:, None]).epsilon[0] == pytest.approx(tiled_grid_epsilon(u, r), abs=1e-6)


@pytest.mark.parametrize("n", [2, 20, 64])
def test_exact_form_is_never_below_the_grid_one(n):
    rng = np.random.default_rng(n)
    for name, u, r in families(n, rng):
        exact, grid = (attack(u[:, None], r[:, None]).epsilon[0] for attack in (exact_epsilon, grid_epsilon))
        assert exact >= grid or np.isclose(exact, grid, atol=1e-6), name


def test_many_examples_at_once_equal_one_at_a_time():
    rng = np.random.default_rng(1)
    u, r = rng.normal(size=(40, 600)), rng.normal(size=(40, 600)).round(1)
    for attack in (partial(exact_epsilon, n_workers=2), exact_epsilon, grid_epsilon):
        together = attack(u, r).epsilon
        some = [0, 17, 511, 512, 599]
        np.testing.assert_array_equal(together[some], [attack(u[:, [i]], r[:, [i]]).epsilon[0] for i in some])


def test_large_samples_use_wider_integers():
    rng = np.random.default_rng(2)
    u, r = rng.normal(size=9000).round(1), rng.normal(size=5).round(1) + 0.5
    epsilon, _ = exact_by_brute_force(u, r)
    assert exact_epsilon(u[:, None], r[:, None]).epsilon[0] == pytest.approx(epsilon, abs=1e-4)


@pytest.mark.parametrize("attack", [exact_epsilon, grid_epsilon])
class TestNoExampleIsDropped:
    def test_equal_constants_have_only_discarded_attacks(self, attack):
        same = np.ones((16, 1))
        result = attack(same, same)
        assert result.epsilon[0] == 50 and result.discarded[0] and not result.too_tight[0]

    def test_different_constants_are_separated(self, attack):
        result = attack(np.ones((16, 1)), np.zeros((16, 1)))
        assert result.epsilon[0] == 50 and not result.discarded[0]

    def test_a_constant_beside_a_spread_is_too_tight(self, attack):
        result = attack(np.ones((16, 1)), np.arange(16.0)[:, None])
        assert result.epsilon[0] == 50 and result.too_tight[0]

    def test_two_models_are_never_enough_for_a_clean_attack_to_be_kept(self, attack):
        result = attack(np.array([[0.0], [1.0]]), np.array([[0.5], [1.5]]))
        assert 0 <= result.epsilon[0] <= 50

    def test_the_range_rule_can_be_switched_off(self, attack):
        rng = np.random.default_rng(0)
        tight, wide = 1e-3 * rng.normal(size=(64, 1)), rng.normal(size=(64, 1))
        assert attack(tight, wide).epsilon[0] == 50
        assert not attack(tight, wide, MetricSpec(range_ratio=0)).too_tight[0]


def test_separation_below_the_grids_step_is_found_by_the_exact_form_only():
    u = np.linspace(0, 1, 50)[:, None]
    r = u + 1.0005
    assert exact_epsilon(u, r).epsilon[0] == 50
    assert grid_epsilon(u, r).epsilon[0] <= 50


def test_thresholds_are_those_of_the_definition():
    (right,), (n_right,) = right_ends(np.array([-1.3]), np.array([2.2]), SPEC)
    np.testing.assert_array_equal(right, np.linspace(-1.3 + (2.2 + 1.3) - 2.0, 2.2 + 2.0, n_right))
    assert right[0] == pytest.approx(0.2) and right[-1] == pytest.approx(4.2) and len(right) in (400, 401)
    left = LeftEnds(right, 3.5, SPEC)
    assert left.n == 400
    for i in (0, 7, len(right) - 1):
        expected = np.linspace(right[i] - 3.5 - 2.0, right[i] - 3.5 + 2.0, 400)
        np.testing.assert_array_equal(left.at(np.full(400, i), np.arange(400)), expected)
    torch = pytest.importorskip("torch")
    single = _singles(-1.31, 2.2)
    n = int(np.ceil((2.2 + 1.31) * 100))
    np.testing.assert_allclose(single, torch.linspace(-1.31, 2.2, n).numpy(), rtol=0, atol=3e-7)
    assert single.dtype == np.float32 and single[0] == np.float32(-1.31) and single[-1] == np.float32(2.2)
    assert len(_singles(1.0, 1.0)) == 0 and len(_singles(1.0, 1.001)) == 1


def _singles(lowest, highest):
    thresholds = SingleThresholds(np.array([lowest]), np.array([highest]), SPEC)
    numbers = np.arange(thresholds.n[0])
    return thresholds.at(np.zeros_like(numbers), numbers)


@pytest.mark.parametrize("spec", [SPEC, MetricSpec(delta=0.1, range_ratio=0, grid_per_unit=37, grid_buffer=0.7)])
def test_grid_form_equals_one_attack_after_the_other_to_the_bit(spec):
    for n_u, n_r in ((8, 8), (33, 20)):
        cases = list(families(n_u, np.random.default_rng(n_u)))
        for far in (0, 1e4, 1e9, 1e14):  # where numbers lie 0.016 apart in the end
            u = far + np.stack([u for _, u, _ in cases], axis=1)
            r = far + np.stack([r[:n_r] for _, _, r in cases], axis=1)
            expected = [grid_one_by_one(u[:, i], r[:, i], spec) for i in range(u.shape[1])]
            np.testing.assert_array_equal(grid_epsilon(u, r, spec).epsilon, expected)
            np.testing.assert_array_equal(grid_epsilon(u, r, spec, n_workers=2).epsilon, expected)


@settings(max_examples=100, deadline=None)
@given(two_samples(), st.integers(2, 9), st.floats(-9, 9), st.floats(0, 4), st.floats(0, 9), st.integers(0, 99))
def test_counts_below_even_points_equal_a_binary_search(case, n, first, step, near, seed):
    rng = np.random.default_rng(seed)
    for sample in map(np.sort, case):
        counts = Counts(sample[None], *(np.array([x]) for x in (first, step)), n, np.array([near + 1e-12]))
        points = first + step * np.arange(n - 1) + near * rng.uniform(-1, 1, n - 1)
        close = sample[np.abs(sample[:, None] - points).argmin(axis=0)]  # points on values, where they may lie there
        points = np.where(np.abs(close - first - step * np.arange(n - 1)) <= near, close, points)
        number = np.arange(n - 1)
        for compare, side in ((np.less, "left"), (np.less_equal, "right")):
            below = counts.below(np.zeros_like(number), points.take, number, number, compare)
            np.testing.assert_array_equal(below, sample.searchsorted(points, side))
        assert (counts.fewest[number] <= sample.searchsorted(points)).all()
        assert (sample.searchsorted(points, "right") <= counts.most[number]).all()
        assert counts.fewest[-1] == len(sample)
