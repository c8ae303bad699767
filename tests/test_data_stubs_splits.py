"""Parts, forget policies, saved splits."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_stubs import fingerprint, split_forget
from data_stubs.parts import Part, Source, halve_held_out, stratified_subset
from data_stubs.splits import PARTS, load, save
from kit.errors import InputError

POLICIES = [
    "random:40",
    "random:0.1",
    "class:3",
    "class:0,1",
    "indices:{folder}/forget.npy",
    "group:0.1",
    "group:7",
    "competition",
    "competition:0.1",
]


def make_part(labels, prefix: str, first: int = 0, images_per_group: int = 1) -> Part:
    labels = np.asarray(labels, dtype=np.int64)
    images = np.random.default_rng(len(labels)).integers(0, 256, (len(labels), 3, 4, 4), dtype=np.uint8)
    ids = np.array([f"{prefix}-{row}" for row in range(len(labels))])
    return Part(images, labels, ids, first + np.arange(len(labels)) // images_per_group)


def make_source(n_train: int = 600, n_classes: int = 4, images_per_group: int = 1) -> Source:
    return Source(
        "made",
        make_part(np.arange(n_train) % n_classes, "train", 0, images_per_group),
        make_part(np.arange(80) % n_classes, "validation", n_train),
        make_part(np.arange(80) % n_classes, "test", 2 * n_train),
        tuple(f"class {label}" for label in range(n_classes)),
    )


@pytest.fixture
def policy(request, tmp_path):
    np.save(tmp_path / "forget.npy", np.array([5, 590, 17]))
    return request.param.format(folder=tmp_path)


every_policy = pytest.mark.parametrize("policy", POLICIES, indirect=True)


def row_numbers(part: Part) -> list[int]:
    return [int(image_id.split("-")[1]) for image_id in part.ids]


@every_policy
def test_retain_and_forget_are_disjoint_in_training_order_and_unchanged(policy):
    source = make_source()
    splits = split_forget(source, policy, seed=3)
    retain, forget = row_numbers(splits.retain), row_numbers(splits.forget)
    assert retain and forget and not set(retain) & set(forget)
    assert retain == sorted(retain) and forget == sorted(forget)
    if not policy.startswith("competition"):
        assert sorted(retain + forget) == list(range(600))
    for part, rows in ((splits.retain, retain), (splits.forget, forget)):
        np.testing.assert_array_equal(part.images, source.train.images[rows])
        np.testing.assert_array_equal(part.labels, source.train.labels[rows])
    assert len(splits.train) == len(retain) + len(forget)
    assert splits.train.ids.tolist() == splits.retain.ids.tolist() + splits.forget.ids.tolist()


@every_policy
def test_same_seed_same_splits_other_seed_others(policy):
    one, again, other = (split_forget(make_source(), policy, seed) for seed in (1, 1, 2))
    assert fingerprint(one) == fingerprint(again)
    seedless = policy.startswith(("class", "indices"))
    assert (fingerprint(one) == fingerprint(other)) == seedless


@pytest.mark.parametrize("policy, n_forget", [("random:40", 40), ("random:0.1", 60), ("random:5e-2", 30)])
def test_random_forgets_the_number_asked_for(policy, n_forget):
    assert len(split_forget(make_source(), policy, 0).forget) == n_forget


def test_class_forgets_every_example_of_the_classes():
    splits = split_forget(make_source(), "class:2,0", 0)
    assert set(splits.forget.labels) == {0, 2} and set(splits.retain.labels) == {1, 3}
    assert splits.n_classes == 4


def test_indices_count_in_the_training_set_and_are_sorted(tmp_path):
    np.save(tmp_path / "forget.npy", np.array([9, 4, 500], dtype=np.int32))
    splits = split_forget(make_source(), f"indices:{tmp_path / 'forget.npy'}", 0)
    assert row_numbers(splits.forget) == [4, 9, 500]


@given(seed=st.integers(0, 1000), amount=st.one_of(st.integers(1, 20), st.floats(0.02, 0.5)))
@settings(max_examples=30, deadline=None)
def test_group_keeps_subjects_whole(seed, amount):
    source = make_source(images_per_group=7)
    splits = split_forget(source, f"group:{amount}", seed)
    assert not set(splits.retain.groups) & set(splits.forget.groups)
    if isinstance(amount, int):
        assert len(set(splits.forget.groups)) == amount
    else:
        assert 0 <= len(splits.forget) - round(amount * 600) < 7


@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_competition_has_the_shape_of_the_hidden_data(seed):
    splits = split_forget(make_source(4000, n_classes=10), "competition", seed)
    forget, n_train = splits.forget, len(splits.train)
    assert abs(len(forget) - 0.02 * n_train) <= 4
    assert set(forget.labels) == {0, 1} and np.mean(forget.labels == 0) > 0.6
    subjects = [set(getattr(splits, part).groups.tolist()) for part in PARTS]
    assert sum(map(len, subjects)) == len(set.union(*subjects)), "a subject is in two parts"
    for part in (splits.train, splits.validation, splits.test):
        counts = np.bincount(part.labels, minlength=10)
        assert (np.diff(counts) <= 0).all() and counts[0] > 1.3 * counts[1] and counts.min() >= 1
    _, sizes = np.unique(splits.train.groups, return_counts=True)
    assert sizes.min() >= 1 and sizes.max() <= 8 and len(set(sizes)) > 3
    for subject in set(forget.groups):
        assert len(set(splits.train.labels[splits.train.groups == subject])) == 1


def test_competition_keeps_real_subjects():
    source = make_source(4000, n_classes=2, images_per_group=5)
    splits = split_forget(source, "competition:0.05", 0)
    assert not set(splits.retain.groups) & set(splits.forget.groups)
    rows = row_numbers(splits.forget)
    np.testing.assert_array_equal(splits.forget.groups, np.array(rows) // 5)


BAD_POLICIES = {
    "everything": "unknown: choose from random, class, indices, group, competition",
    "random": "is no amount",
    "random:": "is no amount",
    "random:many": "is no amount",
    "random:0": "empty",
    "random:-2": "empty",
    "random:600": "600 of 600 examples would leave nothing to retain",
    "random:601": "nothing to retain",
    "random:1.0": "not between 0 and 1",
    "random:0.0": "not between 0 and 1",
    "random:nan": "not between 0 and 1",
    "random:0.0001": "no example would be forgotten",
    "random:599": "would have no retain example",
    "class": "is no class number",
    "class:cat": "is no class number",
    "class:4": "no class 4: choose from 0 to 3",
    "class:-1": "no class -1",
    "class:0,1,2,3": "every class would be forgotten",
    "indices": "write indices:PATH.npy",
    "indices:": "write indices:PATH.npy",
    "group:0.00001": "no example would be forgotten",
    "group:600": "600 of 600 subjects",
    "group:0.9999": "would be forgotten: ask for fewer",
    "competition:5": "is no share",
    "competition:": "is no amount",
    "competition:0.9": "would have no retain example",
    "competition:0.0001": "no example would be forgotten",
}


@pytest.mark.parametrize("policy", BAD_POLICIES)
def test_bad_policies_are_one_clear_line(policy):
    with pytest.raises(InputError) as error:
        split_forget(make_source(), policy, 0)
    assert BAD_POLICIES[policy] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "index, message",
    [
        (np.array([3, 600]), "index 600 is outside the training set: it has 600 examples"),
        (np.array([-1, 3]), "index -1 is outside"),
        (np.array([3, 4, 3]), "index 3 occurs more than once"),
        (np.array([3.0, 4.0]), "holds float64 (2,)"),
        (np.array([[3, 4]]), "holds int64 (1, 2)"),
        (np.array([], dtype=np.int64), "no example would be forgotten"),
        (np.arange(600), "every example would be forgotten"),
        (np.arange(0, 600, 4), "class 0 (class 0) would have no retain example"),
        (np.array([{}], dtype=object), "is no .npy file of integers"),
    ],
)
def test_bad_index_files_are_one_clear_line(tmp_path, index, message):
    np.save(tmp_path / "forget.npy", index)
    with pytest.raises(InputError) as error:
        split_forget(make_source(), f"indices:{tmp_path / 'forget.npy'}", 0)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_no_index_array(tmp_path):
    (tmp_path / "text.npy").write_text("1 2 3")
    (tmp_path / "empty.npy").touch()
    np.savez(tmp_path / "several.npz", a=np.arange(3))
    for name, message in {
        "missing.npy": "no such file",
        "text.npy": "is no .npy file",
        "empty.npy": "is no .npy file",
        "several.npz": "an archive of arrays",
    }.items():
        with pytest.raises(InputError, match=message) as error:
            split_forget(make_source(), f"indices:{tmp_path / name}", 0)
        assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": np.zeros((6, 3, 4, 4), dtype=np.float32)}, "images are float32"),
        ({"images": np.zeros((6, 4, 4), dtype=np.uint8)}, r"images are uint8 \(6, 4, 4\)"),
        ({"images": np.zeros((0, 3, 4, 4), dtype=np.uint8)}, "no images"),
        ({"labels": np.zeros(5, dtype=np.int64)}, "labels are"),
        ({"labels": np.zeros(6, dtype=np.int32)}, "labels are int32"),
        ({"labels": np.full(6, -1)}, "labels hold -1"),
        ({"ids": np.arange(6)}, "ids are int64"),
        ({"groups": np.zeros(6)}, "groups are float64"),
    ],
)
def test_parts_check_shapes_and_types(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(make_part(np.zeros(6), "x"), **change)


def test_sources_check_that_parts_fit_together():
    source = make_source()
    with pytest.raises(InputError, match="labels go up to 3: there are 3 classes"):
        dataclasses.replace(source, class_names=("a", "b", "c"))
    with pytest.raises(InputError, match="occurs twice"):
        dataclasses.replace(source, test=source.validation)
    small = dataclasses.replace(source.test, images=source.test.images[:, :, :2])
    with pytest.raises(InputError, match="same shape"):
        dataclasses.replace(source, test=small)


def test_groups_default_to_each_image_its_own():
    part = make_part(np.zeros(6), "x")
    assert Part(part.images, part.labels, part.ids).groups.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("n_held_out", [2, 101, 10_000])
def test_held_out_halves_are_those_of_the_starting_kit(n_held_out):
    held_out = make_part(np.zeros(n_held_out), "held")
    validation, test = halve_held_out(held_out)
    rng = torch.Generator().manual_seed(42)
    expected_test, expected_validation = torch.utils.data.random_split(held_out.ids, [0.5, 0.5], generator=rng)
    assert test.ids.tolist() == list(expected_test)
    assert validation.ids.tolist() == list(expected_validation)
    np.testing.assert_array_equal(test.images, held_out.images[expected_test.indices])


@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=8), data=st.data())
@settings(max_examples=60, deadline=None)
def test_stratified_subset_keeps_shares(counts, data):
    labels = np.repeat(np.arange(len(counts)), counts)
    n = data.draw(st.integers(len(counts), len(labels)))
    index = stratified_subset(labels, n, np.random.default_rng(0))
    assert len(index) == len(set(index.tolist())) == n and (np.diff(index) > 0).all()
    got = np.bincount(labels[index], minlength=len(counts))
    assert (got >= 1).all() and (got <= counts).all()
    if (np.array(counts) * n >= len(labels)).all():
        assert (abs(got - np.array(counts) * n / len(labels)) < 1).all()


def test_a_disk_that_fills_up_is_told_with_its_reason(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError("4096 requested and 0 written")  # as numpy says it, without an error number

    splits = split_forget(make_source(), "random:40", 0)
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match=r"cannot be written \(4096 requested and 0 written\)"):
        save(splits, tmp_path / "saved")


def test_saved_splits_come_back_memory_mapped(tmp_path):
    splits = split_forget(make_source(), "random:40", 0)
    folder = save(splits, tmp_path / "below" / "saved")
    loaded = load(folder)
    assert fingerprint(loaded) == fingerprint(splits)
    assert (loaded.name, loaded.class_names) == (splits.name, splits.class_names)
    assert isinstance(loaded.retain.images, np.memmap) and not loaded.retain.images.flags.writeable
    np.testing.assert_array_equal(loaded.forget.images, splits.forget.images)
    assert list(folder.parent.iterdir()) == [folder], "temporary files are left"
    other = split_forget(make_source(), "random:40", 1)
    assert fingerprint(load(save(other, folder))) == fingerprint(other)
    assert fingerprint(loaded) == fingerprint(splits), "replacing a folder must not disturb who has it open"


def test_saving_refuses_a_folder_with_other_things(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds no saved splits"):
        save(split_forget(make_source(), "random:40", 0), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "splits.json").write_text("{"),
        lambda folder: (folder / "retain_ids.npy").unlink(),
        lambda folder: (folder / "test_images.npy").write_bytes(b"nothing"),
        lambda folder: (folder / "forget_labels.npy").write_bytes((folder / "validation_labels.npy").read_bytes()),
    ],
)
def test_damaged_saved_splits_are_one_clear_line(tmp_path, harm):
    folder = save(split_forget(make_source(), "random:40", 0), tmp_path / "saved")
    harm(folder)
    with pytest.raises(InputError, match="are no saved splits") as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_fingerprint_tells_every_array_apart():
    splits = split_forget(make_source(), "random:40", 0)
    assert len(fingerprint(splits)) == 16 and int(fingerprint(splits), 16) >= 0
    part = splits.forget
    changed_image = part.images.copy()
    changed_image[0, 0, 0, 0] ^= 1
    changes = {
        "images": changed_image,
        "labels": (part.labels + 1) % 4,
        "ids": np.char.add(part.ids, "x"),
        "groups": part.groups + 1,
    }
    prints = {fingerprint(splits)}
    for name, value in changes.items():
        prints.add(fingerprint(dataclasses.replace(splits, forget=dataclasses.replace(part, **{name: value}))))
    assert len(prints) == 5


def test_loading_a_missing_folder():
    with pytest.raises(InputError, match="are no saved splits"):
        load(Path("nowhere"))
