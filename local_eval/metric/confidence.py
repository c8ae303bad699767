"""Logits -> logit-scaled confidences."""

import numpy as np

from kit.errors import InputError

from .checks import check_finite

_TINY = 1e-45  # keeps both logarithms finite: confidences lie within +-103.62


def logit_scaled_confidence(logits, labels) -> np.ndarray:
    """log p_y - log(sum of the other p) of each example under each model.

    logits (n_models, n_examples, n_classes), labels (n_examples,) -> (n_models, n_examples) float64.
    The exponentials keep the logits' own precision (at least float32) and everything after them is
    float64, as in the released code. The arguments are left as they are.

    Raises InputError: wrong shapes, labels that are no class, NaN or infinite logits.
    Source: Carlini et al. 2022 (LiRA), section VI.A; the competition's released scoring code.
    """
    logits = np.asarray(logits)
    labels = np.asarray(labels)
    if logits.ndim != 3 or logits.shape[2] < 2:
        raise InputError(
            f"logits have shape {logits.shape}: expected (n_models, n_examples, n_classes), two classes or more"
        )
    n_models, n_examples, n_classes = logits.shape
    if labels.shape != (n_examples,):
        raise InputError(f"labels have shape {labels.shape}: expected ({n_examples},) as in the logits")
    if labels.dtype.kind not in "iu":
        raise InputError(f"labels have type {labels.dtype}: expected integers")
    if n_examples and not (labels.min() >= 0 and labels.max() < n_classes):
        raise InputError(f"labels run from {labels.min()} to {labels.max()}, but the logits have {n_classes} classes")
    check_finite(logits, "logit")
    dtype = np.result_type(logits.dtype, np.float32)
    confidence = np.empty((n_models, n_examples))
    rows = np.arange(n_examples)
    for model in range(n_models):  # one model at a time: the float64 copies stay small
        shifted = logits[model].astype(dtype)
        shifted -= shifted.max(axis=1, keepdims=True)
        p = np.exp(shifted).astype(np.float64)
        p /= p.sum(axis=1, keepdims=True)
        p_label = p[rows, labels].copy()
        p[rows, labels] = 0
        confidence[model] = np.log(p_label + _TINY) - np.log(p.sum(axis=1) + _TINY)
    return confidence
