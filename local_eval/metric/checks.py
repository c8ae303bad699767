"""Arguments checked once, with an error that says what is wrong and where."""

import numpy as np

from kit.errors import InputError


def checked_samples(unlearned, retrained) -> tuple[np.ndarray, np.ndarray]:
    """Both samples of confidences as float64 (n_models, n_examples); the numbers of models may differ.

    Raises InputError: not 2-d, different examples, fewer than two models, no example, NaN or infinity.
    """
    unlearned = _checked_sample(unlearned, "unlearned")
    retrained = _checked_sample(retrained, "retrained")
    if unlearned.shape[1] != retrained.shape[1]:
        raise InputError(
            f"unlearned confidences have {unlearned.shape[1]} examples, retrained ones {retrained.shape[1]}: "
            "both need the same forget set in the same order"
        )
    return unlearned, retrained


def _checked_sample(confidences, name: str) -> np.ndarray:
    confidences = as_floats(confidences, f"{name} confidences")
    if confidences.ndim != 2:
        raise InputError(f"{name} confidences have shape {confidences.shape}: expected (n_models, n_examples)")
    n_models, n_examples = confidences.shape
    if n_models < 2:
        raise InputError(f"{name} confidences come from {n_models} model(s): at least 2 are needed")
    if n_examples < 1:
        raise InputError(f"{name} confidences hold no example: the forget set is empty")
    check_finite(confidences, f"{name} confidence")
    return confidences


def as_floats(values, name: str) -> np.ndarray:
    try:
        if (found := np.asarray(values)).dtype.kind in "SUc":  # numpy would read words, and drop imaginary parts
            raise TypeError(f"they are {found.dtype}")
        return found.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} are not an array of numbers: {error}") from error


def check_finite(values: np.ndarray, name: str) -> None:
    """Raise InputError naming the first value of (n_models, n_examples, ...) that is NaN or infinite."""
    if np.isfinite(values).all():
        return
    model, example, *rest = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
    n_bad = int((~np.isfinite(values)).sum())
    raise InputError(
        f"{name} of model {model}, example {example} is {values[(model, example, *rest)]} "
        f"({n_bad} such value(s) in all): remove or repair that model"
    )
