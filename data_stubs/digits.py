"""scikit-learn's 1,797 real handwritten digits, brought to the shape of the competition's images. No download."""

import numpy as np
from sklearn.datasets import load_digits

from data_stubs.parts import Part, Source, stratified_subset

N_HELD_OUT = 500
SPLIT_SEED = 0
SCALE = 4  # 8 x 8 -> 32 x 32


def load_source() -> Source:
    """1,297 training, 250 validation and 250 test images, 3 equal channels of 32 x 32, classes in equal shares."""
    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # published values are 0..16
    large = grey.repeat(SCALE, axis=1).repeat(SCALE, axis=2)
    everything = Part(
        np.repeat(large[:, None], 3, axis=1),
        digits.target.astype(np.int64),
        np.array([f"digit-{row:04d}" for row in range(len(large))]),
    )
    rng = np.random.default_rng(SPLIT_SEED)
    held_out = stratified_subset(everything.labels, N_HELD_OUT, rng)
    test = held_out[stratified_subset(everything.labels[held_out], N_HELD_OUT // 2, rng)]
    train = np.setdiff1d(np.arange(len(everything)), held_out)
    validation = np.setdiff1d(held_out, test)
    class_names = tuple(str(name) for name in digits.target_names)
    return Source("digits", *(everything.take(index) for index in (train, validation, test)), class_names)
