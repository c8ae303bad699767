"""The trade-off of an attacker's two errors, of which epsilon at one delta is a single point."""

import numpy as np

from local_eval.metric import checked_samples


def tradeoff(unlearned, retrained) -> np.ndarray:
    """Least false negative rate at each number of false positives, (n_retrained + 1, n_examples), falling by column.

    unlearned (n_unlearned, n_examples), retrained (n_retrained, n_examples): confidences. Row k is the least share
    of unlearned models missed by an attack that takes at most k retrained models for unlearned. Attacks are all
    windows, thresholds and their complements, as in the exact form; O((n_unlearned + n_retrained)^2) an example.
    Raises InputError, see `checked_samples`. Source: trade-off functions of Dong, Roth and Su 2022, Gaussian
    differential privacy, definition 2.1.
    """
    unlearned, retrained = checked_samples(unlearned, retrained)
    n_u, n_r = len(unlearned), len(retrained)
    missed = np.full((n_r + 1, unlearned.shape[1]), n_u)
    for example in range(unlearned.shape[1]):
        values = np.concatenate([unlearned[:, example], retrained[:, example]])
        order = np.argsort(values, kind="stable")
        values, is_unlearned = values[order], order < n_u
        cut = np.flatnonzero(np.concatenate([[True], values[1:] > values[:-1], [True]]))  # no cut between equal values
        below_u = np.concatenate([[0], np.cumsum(is_unlearned)])[cut]
        below_r = cut - below_u
        first, last = np.triu_indices(len(cut))
        inside_u, inside_r = below_u[last] - below_u[first], below_r[last] - below_r[first]
        np.minimum.at(missed[:, example], inside_r, n_u - inside_u)
        np.minimum.at(missed[:, example], n_r - inside_r, inside_u)  # the complement predicts "unlearned" outside
    return np.minimum.accumulate(missed, axis=0) / n_u
