"""The other measures beside library functions, closed forms and loops."""

from functools import partial

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score

from kit.errors import InputError
from local_eval.audit import families as f
from local_eval.audit.simulate import simulated_pools
from local_eval.metric import MetricSpec, exact_epsilon, logit_scaled_confidence

EXACT = partial(exact_epsilon, n_workers=1)
RNG = np.random.default_rng(0)
U, R = RNG.normal(size=(2, 6, 9, 4))
LABELS = RNG.integers(4, size=9)


def test_auc_equals_the_library_with_ties():
    rng = np.random.default_rng(1)
    positives, negatives = rng.integers(5, size=(8, 3)), rng.integers(4, size=(11, 3))
    labels = np.repeat([1, 0], [8, 11])
    for i in range(3):
        expected = roc_auc_score(labels, np.concatenate([positives[:, i], negatives[:, i]]))
        assert f.auc(positives, negatives)[i] == pytest.approx(expected)


def test_u_lira_is_blind_to_equal_pools_and_sees_gaussians_as_theory_says():
    rng = np.random.default_rng(2)
    same = f.u_lira(*simulated_pools(100, 60, rng))
    assert same.accuracy.mean() == pytest.approx(0.5, abs=0.02) and same.auc.mean() == pytest.approx(0.5, abs=0.02)
    apart = f.u_lira(*simulated_pools(200, 60, rng, shift=2.0))
    assert apart.accuracy.mean() == pytest.approx(0.841, abs=0.02)  # Phi(1), the best any attack can do
    assert apart.auc.mean() == pytest.approx(0.921, abs=0.02)  # Phi(2 / sqrt 2)
    narrow = f.u_lira(*simulated_pools(200, 60, rng, spread=0.3))
    assert narrow.accuracy.mean() > 0.7  # a spread that no single threshold sees


def test_u_lira_needs_models_to_fit_and_to_test():
    with pytest.raises(InputError):
        f.u_lira(*np.random.default_rng(0).random((2, 3, 5)))


def test_tpr_at_fpr_counts():
    negatives = np.arange(1000.0)
    assert f.tpr_at_fpr([998.5, 989.5, 500.0, 988.5], negatives, 0.01) == 0.5  # ten negatives may be above
    assert f.tpr_at_fpr([998.5, 989.5, 500.0, 0.0], negatives, 0.001) == 0.25
    assert f.tpr_at_fpr([3.0, 5.0], [1.0, 4.0], 0.001) == 0.5  # none may be above
    assert f.tpr_at_fpr([0.0], [1.0], 1.0) == 1.0


def test_klom_equals_a_loop_over_histograms():
    rng = np.random.default_rng(3)
    u, r = simulated_pools(50, 5, rng, shift=1.0)
    for i, found in enumerate(f.klom(u, r)):
        edges = np.linspace(min(u[:, i].min(), r[:, i].min()), max(u[:, i].max(), r[:, i].max()), 21)
        p, q = (np.histogram(x[:, i], edges)[0] / 50 for x in (u, r))
        assert found == pytest.approx(entropy(p, np.where(p > 0, np.maximum(q, 1e-5), q)))
    np.testing.assert_allclose(f.klom(r, r), 0, atol=1e-12)
    assert (f.klom(np.ones((4, 2)), np.ones((4, 2))) == 0).all()


def test_klom_punishes_unlearned_models_where_no_retrained_one_is():
    """The direction of the paper's own code: D(unlearned || retrained), so the wider pool is punished more."""
    wide, narrow = (np.linspace(-x, x, 60)[:, None] for x in (4.0, 1.0))
    assert f.klom(wide, narrow)[0] > 4 * f.klom(narrow, wide)[0]


def test_the_share_that_is_not_normal():
    rng = np.random.default_rng(5)
    assert f.share_not_normal(*rng.normal(size=(2, 200, 400))) == pytest.approx(0.05, abs=0.035)
    assert f.share_not_normal(rng.exponential(size=(200, 30)), rng.normal(size=(200, 30))) == 1
    assert f.share_not_normal(np.ones((20, 3)), rng.normal(size=(20, 3))) == 1
    with pytest.raises(InputError):
        f.share_not_normal(np.ones((7, 3)), np.ones((7, 3)))


def test_epsilon_falls_with_delta():
    u, r = simulated_pools(40, 20, np.random.default_rng(4), shift=1.0)
    curve = f.epsilon_of_delta(u, r, attack=EXACT)
    assert curve.shape == (7, 20) and (np.diff(curve, axis=0) <= 1e-6).all()
    np.testing.assert_array_equal(curve[1], EXACT(u, r, MetricSpec()).epsilon)


def test_losses_are_cross_entropies():
    expected = [[-np.log(softmax(U[m, s])[LABELS[s]]) for s in range(9)] for m in range(6)]
    np.testing.assert_allclose(f.losses(U, LABELS), expected)
    with pytest.raises(InputError):
        f.losses(U, LABELS[:3])


def test_logistic_mia_tells_apart_what_can_be_told_apart():
    rng = np.random.default_rng(5)
    assert f.logistic_mia(rng.normal(size=300), rng.normal(size=400)) == pytest.approx(0.5, abs=0.08)
    assert f.logistic_mia(rng.normal(size=300), rng.normal(size=300) + 10) == 1.0
    with pytest.raises(InputError):
        f.logistic_mia([1.0], [2.0, 3.0])
    with pytest.raises(InputError, match="6 finite losses"):
        f.logistic_mia(rng.normal(size=5), rng.normal(size=9))
    assert 0 <= f.logistic_mia(rng.normal(size=6), rng.normal(size=9)) <= 1


def test_divergences_equal_loops():
    p, q = softmax(R, axis=-1), softmax(U, axis=-1)
    pairs = [(p[m, s], q[m, s]) for m in range(6) for s in range(9)]
    assert f.kl_divergence(U, R) == pytest.approx(np.mean([entropy(a, b) for a, b in pairs]))
    assert f.js_divergence(U, R) == pytest.approx(np.mean([jensenshannon(a, b) ** 2 for a, b in pairs]))
    assert f.activation_distance(U, R) == pytest.approx(np.mean([np.linalg.norm(a - b) for a, b in pairs]))
    assert f.js_divergence(R, R) == pytest.approx(0, abs=1e-12) and f.activation_distance(R[:3], R) == 0


def test_divergences_stay_finite_on_extreme_logits():
    sure = np.zeros((1, 1, 3))
    sure[..., 0] = 1000.0
    assert f.js_divergence(sure, -sure) == pytest.approx(np.log(2))
    assert np.isfinite(f.kl_divergence(sure, np.zeros((1, 1, 3))))


def test_similarity_ratio_follows_the_definition():
    original, retrained, unlearned = U[0], R[0], R[1]

    def distance(a, b):
        total = 0
        for c in np.unique(LABELS):
            of_class = (c == LABELS).astype(int)
            total += abs(roc_auc_score(of_class, softmax(a, -1)[:, c]) - roc_auc_score(of_class, softmax(b, -1)[:, c]))
        return total

    far, near = distance(unlearned, original), distance(unlearned, retrained)
    assert f.similarity_ratio(unlearned, original, retrained, LABELS) == pytest.approx(far / (far + near))
    assert f.similarity_ratio(retrained, original, retrained, LABELS) == 1
    assert f.similarity_ratio(original, original, retrained, LABELS) == 0
    assert f.similarity_ratio(original, original, original, LABELS) == 0.5


def test_rank_agreement():
    found = f.rank_agreement({"a": [1, 2, 3, 4], "b": [1, 2, 4, 3], "c": [4, 3, 2, 1], "flat": [0, 0, 0, 0]})
    assert found.names == ("a", "b", "c", "flat")
    assert found.kendall[0, 1] == pytest.approx(2 / 3) and found.spearman[0, 1] == pytest.approx(0.8)
    assert found.spearman[0, 2] == pytest.approx(-1) and np.isnan(found.kendall[3]).all()
    with pytest.raises(InputError):
        f.rank_agreement({"a": [1, 2], "b": [1, 2]})


def test_the_margin_is_the_confidence_of_the_score():
    """KLoM's margin, the correct logit less the log-sum-exp of the others, is the logit-scaled confidence."""
    others = np.ma.array(U, mask=np.broadcast_to(np.eye(4, dtype=bool)[LABELS], U.shape))
    margin = np.take_along_axis(U, LABELS[None, :, None], -1)[..., 0] - np.log(np.exp(others).sum(-1))
    np.testing.assert_allclose(logit_scaled_confidence(U, LABELS), margin, atol=1e-10)
    assert log_softmax(U, axis=-1).shape == U.shape


def test_unequal_forget_sets_are_refused():
    for measure in (f.activation_distance, f.kl_divergence, f.js_divergence):
        with pytest.raises(InputError):
            measure(U, R[:, :4])
    with pytest.raises(InputError):
        f.similarity_ratio(U[0], U[0], R[0][:3], LABELS)
