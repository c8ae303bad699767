"""The score's two attack families written plainly: every attack tiled or looped over. Oracles, never fast."""

import math

import numpy as np

from local_eval.metric import epsilon_from_rates


def epsilon_of_rates(fpr: float, fnr: float, delta: float) -> float:
    """In float64 from the definition; NaN: discarded."""
    if fpr == 0 and fnr == 0:
        return math.inf
    if fpr == 0 or fnr == 0:
        return math.nan
    forms = [math.log(1 - delta - a) - math.log(b) for a, b in ((fpr, fnr), (fnr, fpr)) if 1 - delta - a > 0]
    return max(0.0, *forms) if forms else math.nan


def too_tight(u, r, ratio=0.01):
    small, large = sorted((np.ptp(u), np.ptp(r)))
    return large > 0 and small / large < ratio


def exact_by_brute_force(u, r, delta=1e-5, cap=50.0) -> tuple[float, bool]:
    """(epsilon, every attack discarded) of one example: all pairs of values as window ends, both directions."""
    if too_tight(u, r):
        return cap, False
    values = sorted({*u.tolist(), *r.tolist()})
    found = []
    for lo in [-math.inf, *values]:
        for hi in [*values, math.inf]:
            inside_u = float(np.mean((u >= lo) & (u <= hi)))
            inside_r = float(np.mean((r >= lo) & (r <= hi)))
            found.append(epsilon_of_rates(inside_r, 1 - inside_u if inside_u < 1 else 0.0, delta))
            found.append(epsilon_of_rates(inside_u, 1 - inside_r if inside_r < 1 else 0.0, delta))
    kept = [e for e in found if not math.isnan(e)]
    return (min(max(kept), cap), False) if kept else (cap, True)


def tiled_grid_epsilon(u, r, delta=1e-5, cap=50.0) -> float:
    """The grid form of one example as a plain array program: every model beside every attack.

    Memory: about 20 bytes for each of 160,000 attacks and each model.
    """
    if too_tight(u, r):
        return cap
    pos, neg = (u, r) if np.median(u) >= np.median(r) else (r, u)
    lo, hi = min(pos.min(), neg.min()), max(pos.max(), neg.max())
    t = np.linspace(np.float32(lo), np.float32(hi), math.ceil((hi - lo) * 100), dtype=np.float32)
    fpr_single = _share(np.tile(neg[:, None], (1, len(t))) >= t)
    fnr_single = _share(np.tile(pos[:, None], (1, len(t))) < t)

    if np.ptp(pos) >= np.ptp(neg):
        pos, neg = neg, pos
    width = np.ptp(pos)
    first, last = pos.min() + width - 2.0, pos.max() + 2.0
    right = np.linspace(first, last, math.ceil((last - first) * 100))
    left = np.concatenate([np.linspace(x - width - 2.0, x - width + 2.0, 400) for x in right])
    right = np.repeat(right, 400)

    def inside(sample):
        tiled = np.tile(sample[:, None], (1, len(right)))
        return np.logical_and(left <= tiled, tiled <= right)

    fpr = np.concatenate([fpr_single, _share(inside(neg))])
    fnr = np.concatenate([fnr_single, _share(~inside(pos))])
    with np.errstate(divide="ignore", invalid="ignore"):
        epsilon = np.fmax(
            np.log(np.float32(1 - delta) - fpr) - np.log(fnr), np.log(np.float32(1 - delta) - fnr) - np.log(fpr)
        )
    epsilon = np.maximum(epsilon, 0)
    epsilon[(fpr == 0) ^ (fnr == 0)] = np.nan
    epsilon[(fpr == 0) & (fnr == 0)] = np.inf
    epsilon = epsilon[~np.isnan(epsilon)]
    return min(float(epsilon.max()), cap) if len(epsilon) else cap


def _share(hits):
    return np.mean(hits.astype(np.float32), axis=0)


def grid_one_by_one(u, r, spec) -> float:
    """The grid form of one example with its counts by np.searchsorted, no attack left out: equal to the bit."""
    if spec.range_ratio and too_tight(u, r, spec.range_ratio):
        return spec.cap
    pos, neg = (np.sort(x) for x in ((u, r) if np.median(u) >= np.median(r) else (r, u)))
    t = _single_thresholds(min(pos[0], neg[0]), max(pos[-1], neg[-1]), spec).astype(np.float64)
    found = [_epsilon_of_counts(len(neg) - neg.searchsorted(t), pos.searchsorted(t), len(neg), len(pos), spec.delta)]
    if np.ptp(pos) >= np.ptp(neg):
        pos, neg = neg, pos
    width, buffer = pos[-1] - pos[0], spec.grid_buffer
    first, last = pos[0] + (pos[-1] - pos[0]) - buffer, pos[-1] + buffer
    for right in np.linspace(first, last, int(np.ceil((last - first) * spec.grid_per_unit))):
        n_left = int(np.ceil(2 * buffer * spec.grid_per_unit))
        left = np.linspace(right - width - buffer, right - width + buffer, n_left)
        in_neg, in_pos = (np.maximum(x.searchsorted(right, "right") - x.searchsorted(left), 0) for x in (neg, pos))
        found.append(_epsilon_of_counts(in_neg, len(pos) - in_pos, len(neg), len(pos), spec.delta))
    found = np.concatenate(found)
    found = found[~np.isnan(found)]
    return float(min(found.max(), spec.cap)) if len(found) else spec.cap


def _epsilon_of_counts(false_positives, false_negatives, n_negatives, n_positives, delta):
    fpr, fnr = (
        np.float32(k) / np.float32(n) for k, n in ((false_positives, n_negatives), (false_negatives, n_positives))
    )
    return epsilon_from_rates(fpr, fnr, delta)


def _single_thresholds(lowest, highest, spec):
    n = int(np.ceil((highest - lowest) * spec.grid_per_unit))
    first, last = np.float32(lowest), np.float32(highest)
    if n < 2:
        return np.full(n, first)
    step = (last - first) / np.float32(n - 1)
    i = np.arange(n, dtype=np.float32)
    half = n // 2
    return np.concatenate([first + step * i[:half], last - step * i[: n - half][::-1]])
