"""Other measures of unlearning from the same two pools, to see whether they agree with the score.

Logits are (n_models, n_examples, n_classes) everywhere, confidences (n_models, n_examples).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import log_softmax, softmax

from kit.errors import InputError
from local_eval.metric import MetricSpec, checked_samples, grid_epsilon
from local_eval.metric.checks import as_floats, check_finite
from local_eval.metric.score import Attack

FEWEST_LOSSES = 6  # of either kind: the tenth of both that the starting kit's attack is tested on holds two


@dataclass(frozen=True)
class MembershipAttack:
    """scores: how much each held-out confidence looks unlearned rather than retrained, (n_models, n_examples) of
    either kind; accuracy and auc (n_examples,): balanced accuracy at score 0, area under the ROC curve."""

    unlearned_scores: np.ndarray
    retrained_scores: np.ndarray
    accuracy: np.ndarray
    auc: np.ndarray


def u_lira(unlearned, retrained, seed: int = 0) -> MembershipAttack:
    """U-LiRA: the likelihood ratio of two Gaussians per example, fitted on some models and tested on others.

    The models of both pools are cut in two; each half is tested with the fits of the other, so every model counts.
    0.5 is a perfect unlearner's accuracy and AUC. Its scores feed two statistics: the balanced accuracy at a ratio of 1
    (as U-LiRA is reported), and the true positive rate at a low false positive one (as LiRA is: Carlini et al. 2022).
    Both rest on normal confidences: `share_not_normal` says for how many examples they are not. Source: Hayes et al.
    2024, Inexact unlearning needs more careful evaluations, per-example U-MIA.
    """
    unlearned, retrained = checked_samples(unlearned, retrained)
    if min(len(unlearned), len(retrained)) < 4:
        raise InputError("U-LiRA needs 4 models of either kind at least: two to fit, two to test")
    rng = np.random.default_rng(seed)
    halves = [np.array_split(rng.permutation(len(sample)), 2) for sample in (unlearned, retrained)]
    scores = [np.empty_like(sample) for sample in (unlearned, retrained)]
    for fitted in (0, 1):
        u, r = (sample[rows[fitted]] for sample, rows in zip((unlearned, retrained), halves, strict=True))
        for sample, rows, score in zip((unlearned, retrained), halves, scores, strict=True):
            tested = rows[1 - fitted]
            score[tested] = _gaussian_log_likelihood(sample[tested], u) - _gaussian_log_likelihood(sample[tested], r)
    accuracy = ((scores[0] > 0).mean(axis=0) + (scores[1] <= 0).mean(axis=0)) / 2
    return MembershipAttack(*scores, accuracy, auc(scores[0], scores[1]))


def share_not_normal(unlearned, retrained, level: float = 0.05) -> float:
    """Share of the examples of which either sample fails a test of normality at this level (D'Agostino and Pearson
    1973; half the level for each sample): about `level` where all are normal. Constant samples fail."""
    from scipy.stats import normaltest  # most of a second to import, as everywhere below

    failed = np.zeros(np.shape(unlearned)[1], bool)
    for sample in checked_samples(unlearned, retrained):
        if len(sample) < 8:
            raise InputError(f"{len(sample)} models: the test of normality needs 8")
        constant = np.ptp(sample, axis=0) <= 1e-9 * np.maximum(1.0, np.abs(sample[0]))
        failed |= constant
        failed[~constant] |= normaltest(sample[:, ~constant], axis=0).pvalue < level / 2
    return float(failed.mean())


def _gaussian_log_likelihood(x: np.ndarray, sample: np.ndarray) -> np.ndarray:
    mean, sd = sample.mean(axis=0), np.maximum(sample.std(axis=0, ddof=1), 1e-6)
    return -np.log(sd) - ((x - mean) / sd) ** 2 / 2


def auc(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each column: the share of pairs with the positive above, ties half."""
    from scipy.stats import rankdata

    n_positives, n_negatives = len(positives), len(negatives)
    ranks = rankdata(np.concatenate([positives, negatives]), axis=0)[:n_positives].sum(axis=0)
    return (ranks - n_positives * (n_positives + 1) / 2) / (n_positives * n_negatives)


def tpr_at_fpr(positives, negatives, fpr: float = 0.01) -> float:
    """True positive rate at a threshold that at most this share of the negatives reaches; all values pooled.

    0.01 and 0.001 are usual (Carlini et al. 2022); with fewer than 1 / fpr negatives none may reach it.
    """
    negatives = np.sort(np.ravel(negatives))
    allowed = int(np.floor(fpr * len(negatives) + 1e-9))
    threshold = negatives[len(negatives) - 1 - allowed] if allowed < len(negatives) else -np.inf
    return float(np.mean(np.ravel(positives) > threshold))


def klom(unlearned, retrained, n_bins: int = 20, smallest: float = 1e-5, limit: float = 100.0) -> np.ndarray:
    """KLoM: KL(unlearned || retrained) of the histograms of margins, (n_examples,).

    The margin is the logit-scaled confidence, clipped to +-limit; the bins of an example share the range of both
    samples; bins without retrained models count as `smallest`. Its 95th percentile over examples is the usual summary.
    Source: Georgiev et al. 2024, Attribute-to-Delete, appendix E.1; direction and `smallest` as in the code that an
    author released (RoyRin/data-unlearning-bench, kl_from_margins), which leaves out the largest value of both
    samples: here it counts in the last bin.
    """
    unlearned, retrained = (np.clip(x, -limit, limit) for x in checked_samples(unlearned, retrained))
    low = np.minimum(unlearned.min(axis=0), retrained.min(axis=0))
    span = np.maximum(unlearned.max(axis=0), retrained.max(axis=0)) - low
    span = np.where(span > 0, span, 1.0)
    n_examples = unlearned.shape[1]

    def histogram(sample):
        bins = np.minimum(((sample - low) / span * n_bins).astype(int), n_bins - 1)
        counts = np.bincount((bins + n_bins * np.arange(n_examples)).ravel(), minlength=n_bins * n_examples)
        return counts.reshape(n_examples, n_bins) / len(sample)

    p, q = histogram(unlearned), histogram(retrained)
    q = np.where(p > 0, np.maximum(q, smallest), q)
    q /= q.sum(axis=1, keepdims=True)
    return np.sum(p * np.log(np.where(p > 0, p, 1.0) / np.where(p > 0, q, 1.0)), axis=1)


def epsilon_of_delta(
    unlearned,
    retrained,
    deltas: Sequence[float] = (0.0, 1e-5, 1e-3, 1e-2, 0.05, 0.1, 0.2),
    spec: MetricSpec | None = None,
    attack: Attack = grid_epsilon,
) -> np.ndarray:
    """Epsilon of each example at each delta, (n_deltas, n_examples): the whole privacy curve, not one point of it."""
    spec = spec or MetricSpec()
    return np.stack([attack(unlearned, retrained, replace(spec, delta=float(d))).epsilon for d in deltas])


def losses(logits, labels) -> np.ndarray:
    """Cross-entropy of each example under each model, (n_models, n_examples)."""
    logits = _checked_logits(logits, "logits")
    labels = np.asarray(labels)
    if labels.shape != logits.shape[1:2]:
        raise InputError(f"labels have shape {labels.shape}: expected ({logits.shape[1]},) as in the logits")
    return -np.take_along_axis(log_softmax(logits, axis=-1), labels[None, :, None], axis=-1)[..., 0]


def logistic_mia(forget_losses, test_losses, n_splits: int = 10, seed: int = 0) -> float:
    """The starting kit's attack on one model: accuracy of a logistic regression that tells losses of forgotten
    examples (n_forget,) from those of test examples (n_test,), cross-validated; 0.5 is best.

    Both sides are cut to the same number. It does not predict the score: see the rank agreement.
    """
    from sklearn.linear_model import LogisticRegression  # a second to import, and only needed here
    from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

    forget, test = (as_floats(x, "losses").ravel() for x in (forget_losses, test_losses))
    n = min(len(forget), len(test))
    if n < FEWEST_LOSSES or not (np.isfinite(forget).all() and np.isfinite(test).all()):
        raise InputError(f"the attack needs {FEWEST_LOSSES} finite losses of either kind at least")
    rng = np.random.default_rng(seed)
    forget, test = rng.permutation(forget)[:n], rng.permutation(test)[:n]
    x, y = np.concatenate([forget, test])[:, None], np.repeat([1, 0], n)
    splits = StratifiedShuffleSplit(n_splits=n_splits, random_state=seed)
    return float(cross_val_score(LogisticRegression(), x, y, cv=splits, scoring="accuracy").mean())


def activation_distance(unlearned_logits, retrained_logits) -> float:
    """Mean L2 distance between the softmax outputs of unlearned and retrained models, over pairs of models of
    equal index and all examples."""

    def distance(u, r):
        return np.linalg.norm(softmax(u, axis=-1) - softmax(r, axis=-1), axis=-1)

    return _mean_over_pairs(distance, unlearned_logits, retrained_logits)


def kl_divergence(unlearned_logits, retrained_logits) -> float:
    """Mean KL(retrained || unlearned) of the softmax outputs in nats, over pairs of models of equal index."""

    def divergence(u, r):
        return _kl(log_softmax(r, axis=-1), log_softmax(u, axis=-1))

    return _mean_over_pairs(divergence, unlearned_logits, retrained_logits)


def js_divergence(unlearned_logits, retrained_logits) -> float:
    """Mean Jensen-Shannon divergence of the softmax outputs in nats, at most log 2; pairs of models of equal index."""

    def divergence(u, r):
        u, r = log_softmax(u, axis=-1), log_softmax(r, axis=-1)
        middle = np.logaddexp(u, r) - np.log(2)
        return (_kl(u, middle) + _kl(r, middle)) / 2

    return _mean_over_pairs(divergence, unlearned_logits, retrained_logits)


def _kl(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)


def similarity_ratio(unlearned_logits, original_logits, retrained_logits, labels) -> float:
    """gamma = D(u, original) / (D(u, original) + D(u, retrained)) on the forget set; above 0.5: nearer to retraining.

    Logits of one model each, (n_examples, n_classes). D sums |difference of the AUC| over the classes, one against the
    rest; a class that is absent, or alone, has AUC 0 in all. 0.5 if all three are alike. Source: Peste, Alistarh and
    Lampert 2021, section 4.
    """
    labels = np.asarray(labels)
    models = [
        _checked_logits(np.asarray(x)[None], "logits")[0] for x in (unlearned_logits, original_logits, retrained_logits)
    ]
    if len({x.shape for x in models}) > 1 or labels.shape != models[0].shape[:1]:
        raise InputError("the three models' logits and the labels need one and the same forget set")

    def aucs(logits):
        p = softmax(logits, axis=-1)
        values = np.zeros(p.shape[1])
        for c in range(p.shape[1]):
            of_class = labels == c
            if of_class.any() and not of_class.all():
                values[c] = auc(p[of_class, c], p[~of_class, c])
        return values

    u, original, retrained = map(aucs, models)
    to_original, to_retrained = np.abs(u - original).sum(), np.abs(u - retrained).sum()
    total = to_original + to_retrained
    return float(to_original / total) if total else 0.5


@dataclass(frozen=True)
class Agreement:
    """Rank correlation between measures over methods: names (n_measures,), matrices (n_measures, n_measures); NaN
    where a measure gives all methods one value."""

    names: tuple[str, ...]
    spearman: np.ndarray
    kendall: np.ndarray


def rank_agreement(measures: Mapping[str, Sequence[float]]) -> Agreement:
    """Do measures rank methods alike? measures: name -> one value a method, in the same order, larger is better
    (negate those where it is worse)."""
    from scipy.stats import kendalltau, spearmanr

    names = tuple(measures)
    values = [as_floats(measures[name], name).ravel() for name in names]
    if len({len(v) for v in values}) > 1 or not values or len(values[0]) < 3:
        raise InputError("rank agreement needs the same methods, three or more, in every measure")
    spearman, kendall = (np.full((len(names), len(names)), np.nan) for _ in range(2))
    for i, a in enumerate(values):
        for j, b in enumerate(values):
            if np.ptp(a) > 0 and np.ptp(b) > 0:
                spearman[i, j] = spearmanr(a, b).statistic
                kendall[i, j] = kendalltau(a, b).statistic
    return Agreement(names, spearman, kendall)


def _checked_logits(logits, name: str) -> np.ndarray:
    logits = _of_three_axes(as_floats(logits, name), name)
    check_finite(logits, name)
    return logits


def _of_three_axes(logits: np.ndarray, name: str) -> np.ndarray:
    if logits.ndim != 3:
        raise InputError(f"{name} have shape {logits.shape}: expected (n_models, n_examples, n_classes)")
    return logits


def _mean_over_pairs(measure: Callable[..., np.ndarray], unlearned_logits, retrained_logits) -> float:
    """The mean over pairs of models of equal index and all examples of measure(float64 logits, float64 logits), one
    pair at a time: all of them in float64 would take several times the memory of the pools."""
    u, r = (
        _of_three_axes(np.asarray(logits), f"{name} logits")
        for name, logits in (("unlearned", unlearned_logits), ("retrained", retrained_logits))
    )
    if u.shape[1:] != r.shape[1:]:
        raise InputError(f"unlearned logits have shape {u.shape}, retrained ones {r.shape}: both need one forget set")
    means = []
    for pair in zip(u, r, strict=False):  # the larger pool's other models have no partner
        u_one, r_one = (_checked_logits(x[None], "logits")[0] for x in pair)
        means.append(measure(u_one, r_one).mean())
    return float(np.mean(means))
