"""Both forms beside the values of the organisers' released code."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from local_eval.metric import exact_epsilon, forgetting_quality, grid_epsilon, logit_scaled_confidence

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("metric_*.npz"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request):
    return np.load(request.param)


def samples(golden):
    return golden["unlearned_confidence"], golden["retrained_confidence"]


def test_there_are_golden_files():
    assert len(FILES) == 8


def test_grid_form_equals_the_released_code(golden):
    result = grid_epsilon(*samples(golden))
    np.testing.assert_allclose(result.epsilon, golden["epsilon"], rtol=0, atol=1e-6)
    quality = forgetting_quality(result.epsilon, len(golden["unlearned_confidence"]))
    assert quality == float(golden["forget_score"])


def test_exact_form_is_never_below_the_grid(golden):
    assert (exact_epsilon(*samples(golden)).epsilon >= golden["epsilon"] - 1e-6).all()


def test_nothing_depends_on_the_order_of_models_or_the_number_of_threads(golden):
    u, r = samples(golden)
    rng = np.random.default_rng(0)
    for attack, again in ((grid_epsilon, grid_epsilon), (exact_epsilon, partial(exact_epsilon, n_workers=2))):
        plain = attack(u, r).epsilon
        shuffled = again(rng.permutation(u), rng.permutation(r)).epsilon
        np.testing.assert_array_equal(plain, shuffled)


def test_exact_form_is_symmetric_in_the_samples(golden):
    u, r = samples(golden)
    np.testing.assert_array_equal(exact_epsilon(u, r).epsilon, exact_epsilon(r, u).epsilon)


def test_confidence_equals_the_released_code():
    golden = np.load(GOLDEN / "confidence.npz")
    logits = golden["logits"][None]
    before = logits.copy()
    confidence = logit_scaled_confidence(logits, golden["targets"])
    np.testing.assert_allclose(confidence[0], golden["confidence"], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(logits, before)
