"""Large pools and forget sets: what is held at once stays a small part of all that is looked at."""

import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest

from kit.errors import InputError
from local_eval.audit import families
from local_eval.evaluate import Sample
from local_eval.metric import exact_epsilon, grid_epsilon
from local_eval.pool import ModelPool

N_MODELS, N_EXAMPLES, N_CLASSES = 64, 400, 10


@contextmanager
def at_most(n_bytes):
    """The block holds at most so many bytes beyond what was there before."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= n_bytes
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    rng = np.random.default_rng(0)
    pool = ModelPool(tmp_path_factory.mktemp("pools") / "pool", {"kind": "retrained"})
    for index in range(N_MODELS):
        sizes = {"forget": N_EXAMPLES, "retain": 300, "test": 500}
        logits = {name: rng.normal(size=(n, N_CLASSES)).astype(np.float32) for name, n in sizes.items()}
        pool.add(index, logits, 1.0)
    return pool


def test_a_pool_is_read_without_a_second_copy(pool):
    whole = sum(array.nbytes for array in pool.read(N_MODELS).values())
    with at_most(1.3 * whole):
        pool.read(N_MODELS)


def test_a_model_of_another_size_is_named(tmp_path):
    pool = ModelPool(tmp_path / "pool", {})
    for index, n in enumerate((5, 1)):
        pool.add(index, dict.fromkeys(("forget", "retain", "test"), np.zeros((n, 3), np.float32)), 1.0)
    with pytest.raises(InputError, match="model_00001"):
        pool.read(2)


def test_doing_nothing_keeps_its_one_model_once(pool):
    arrays = pool.read(1)
    one = Sample({"forget": arrays["forget"]}, {"forget": np.arange(N_EXAMPLES) % N_CLASSES}, arrays["seconds"])
    with at_most(arrays["forget"].nbytes):
        many = one.repeated(512)
    assert many.logits["forget"].shape == (512, N_EXAMPLES, N_CLASSES) and len(many) == 512
    np.testing.assert_array_equal(many.confidence[[0, 511]], one.confidence[[0, 0]])


def test_distances_look_at_one_pair_of_models_at_a_time(pool):
    logits = pool.read(N_MODELS)["forget"]
    for measure in (families.activation_distance, families.js_divergence, families.kl_divergence):
        with at_most(logits.nbytes // 2):
            measure(logits, logits[::-1])


@pytest.mark.parametrize("attack", [grid_epsilon, exact_epsilon])
def test_the_memory_of_an_attack_does_not_grow_with_the_examples(attack):
    rng = np.random.default_rng(0)
    u, r = rng.normal(size=(2, 16, 4000))

    def peak(n_examples):
        tracemalloc.start()
        attack(u[:, :n_examples], r[:, :n_examples], n_workers=1)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(16)
    assert peak(4000) < peak(1000) + 4 * u.nbytes


def test_wide_confidences_take_fewer_examples_at_once():
    u, r = 2e3 * np.random.default_rng(0).normal(size=(2, 4, 24))
    with at_most(8e6):  # all of them together take 16 MB: a million thresholds each
        grid_epsilon(u, r, n_workers=1)
