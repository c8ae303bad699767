"""The trade-off of both errors against brute force over every window."""

from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.errors import InputError
from local_eval.audit.tradeoff import tradeoff
from local_eval.metric import MetricSpec, exact_epsilon


def by_hand(u, r):
    """Every closed window with ends among the values, and what lies outside it; the empty window is outside of all."""
    ends = sorted({*u, *r})
    best = np.ones(len(r) + 1)
    best[-1] = 0.0  # "unlearned", always
    for lo, hi in combinations_with_replacement(ends, 2):
        in_u, in_r = (sum(lo <= x <= hi for x in sample) for sample in (u, r))
        for false_positives, missed in ((in_r, len(u) - in_u), (len(r) - in_r, in_u)):
            for k in range(false_positives, len(r) + 1):
                best[k] = min(best[k], missed / len(u))
    return best


values = st.lists(st.integers(0, 6).map(float), min_size=2, max_size=7)


@settings(max_examples=150, deadline=None)
@given(values, values)
def test_it_is_the_best_of_all_windows_and_their_complements(u, r):
    found = tradeoff(np.array(u)[:, None], np.array(r)[:, None])
    np.testing.assert_allclose(found[:, 0], by_hand(u, r))


def test_epsilon_is_a_point_of_it():
    rng = np.random.default_rng(0)
    u, r = rng.normal(0.7, 1.0, (24, 5)), rng.normal(size=(24, 5))
    spec = MetricSpec(range_ratio=0.0)
    curve, fpr = tradeoff(u, r), np.arange(25)[:, None] / 24
    inner = (fpr > 0) & (curve > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        forms = [np.log(1 - spec.delta - a) - np.log(b) for a, b in ((fpr, curve), (curve, fpr))]
    best = np.where(inner, np.fmax(*forms), 0.0).max(axis=0)
    np.testing.assert_allclose(exact_epsilon(u, r, spec).epsilon, best, rtol=1e-5)


def test_separated_samples_and_equal_ones():
    u, r = np.arange(4.0)[:, None], np.arange(3.0)[:, None]
    np.testing.assert_array_equal(tradeoff(u + 10, r)[:, 0], 0)
    np.testing.assert_array_equal(tradeoff(np.ones((4, 1)), np.ones((3, 1)))[:, 0], [1, 1, 1, 0])
    with pytest.raises(InputError, match="same forget set"):
        tradeoff(u, np.ones((3, 2)))
