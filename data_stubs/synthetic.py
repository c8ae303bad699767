"""Made-up images with a long tail: a small network trained for a few epochs memorises part of them. No download.

Forgetting can only be measured where a model knows its training examples better than others; on easy data the model
that never saw an example is as good at it. Here 10 classes are stripes at 10 angles. Three fifths of the images
show their class plainly. The others are ambiguous: stripes of their class crossed by those of its partner, at a right
angle, so that only a rare pattern laid over them (a sub-mode of the class, often seen in one training example only)
tells which of the two it is. That has to be memorised, as the rare sub-populations of real data (Feldman 2020, "Does
Learning Require Memorization?").
"""

import numpy as np

from data_stubs.parts import Part, Source, halve_held_out
from kit.errors import InputError

N_CLASSES = 10
SIZE = 32  # height and width
# Tuned so that a three-layer network after 6 epochs of 3,000 to 10,000 images is right on 75 to 90% of the test images
# and on at least 10 points more of a forget set than the same network trained without it.
TAIL_SHARE = 0.4
EXAMPLES_PER_MODE = 0.4  # expected among the training images, so most sub-modes that occur do so once
PATTERN_CELLS = 8  # a pattern is 8 x 8 cells, each channel of a cell bright or dark
PATTERN_CONTRAST = 80.0  # grey levels
CROSSED_CONTRAST = 0.5  # of each of two crossed stripes, relative to plain stripes
ANGLE_NOISE = np.deg2rad(4.0)  # standard deviation; classes lie 18 degrees apart
PIXEL_NOISE = 12.0  # standard deviation in grey levels
CHUNK = 500  # images made at once; bounds the memory of floating-point intermediates


def generate(n_train: int = 10_000, n_heldout: int = 2_000, seed: int = 0) -> Source:
    """n_train training images and n_heldout held-out ones, halved into validation and test part; 3 x 32 x 32.

    All parts come from one distribution, with the classes in equal shares; the same arguments give the same images.
    Raises InputError for fewer training images than classes or fewer than 2 held-out images.
    """
    if n_train < N_CLASSES or n_heldout < 2:
        raise InputError(
            f"synthetic: {n_train} training and {n_heldout} held-out images: ask for at least {N_CLASSES} and 2"
        )
    modes_rng, train_rng, held_out_rng = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3)
    )
    modes_per_class = max(1, round(TAIL_SHARE * n_train / EXAMPLES_PER_MODE / N_CLASSES))
    shape = (modes_per_class, N_CLASSES, 3, PATTERN_CELLS, PATTERN_CELLS)
    patterns = modes_rng.integers(0, 2, shape, dtype=np.int8) * 2 - 1
    images, labels = _draw(n_train, patterns, train_rng)
    train = Part(images, labels, np.array([f"train-{row:06d}" for row in range(n_train)]))
    images, labels = _draw(n_heldout, patterns, held_out_rng)
    ids = np.array([f"heldout-{row:06d}" for row in range(n_heldout)])
    validation, test = halve_held_out(Part(images, labels, ids, n_train + np.arange(n_heldout)))
    names = tuple(f"stripes at {180 // N_CLASSES * label} degrees" for label in range(N_CLASSES))
    return Source("synthetic", train, validation, test, names)


def _draw(n: int, patterns: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.permutation(np.arange(n, dtype=np.int64) % N_CLASSES)
    images = np.empty((n, 3, SIZE, SIZE), dtype=np.uint8)
    for start in range(0, n, CHUNK):
        rows = slice(start, start + CHUNK)
        images[rows] = _images(labels[rows], patterns, rng)
    return images, labels


def _images(labels: np.ndarray, patterns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n = len(labels)
    waves = _stripes(labels, rng)
    tail = np.flatnonzero(rng.random(n) < TAIL_SHARE)
    partner = (labels[tail] + N_CLASSES // 2) % N_CLASSES
    waves[tail] = CROSSED_CONTRAST * (waves[tail] + _stripes(partner, rng))
    # Colours and contrast, of either sign, carry nothing about the class.
    grey = rng.uniform(90, 165, (n, 3, 1, 1)).astype(np.float32)
    contrast = rng.uniform(40, 80, (n, 1)) * rng.choice([-1, 1], (n, 1)) * rng.uniform(0.5, 1, (n, 3))
    images = grey + contrast.astype(np.float32)[:, :, None, None] * waves[:, None]
    mode = rng.integers(0, len(patterns), len(tail))
    cells = patterns[mode, labels[tail]].astype(np.float32) * PATTERN_CONTRAST
    width = SIZE // PATTERN_CELLS
    images[tail] += cells.repeat(width, axis=2).repeat(width, axis=3)
    images += rng.standard_normal(images.shape, dtype=np.float32) * np.float32(PIXEL_NOISE)
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)


def _stripes(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sine waves at the angle of each label, of random length and phase: float32 (n, SIZE, SIZE) in -1..1."""
    n = len(labels)
    angle = labels * (np.pi / N_CLASSES) + rng.normal(0, ANGLE_NOISE, n)
    frequency = 2 * np.pi / rng.uniform(7, 12, n)  # radians a pixel
    phase = rng.uniform(0, 2 * np.pi, n)
    at = np.arange(SIZE) - (SIZE - 1) / 2
    across = ((frequency * np.cos(angle))[:, None] * at).astype(np.float32)
    down = ((frequency * np.sin(angle))[:, None] * at + phase[:, None]).astype(np.float32)
    # sin(across + down) from rows and columns: far fewer sines than pixels.
    return np.sin(down)[:, :, None] * np.cos(across)[:, None] + np.cos(down)[:, :, None] * np.sin(across)[:, None]
