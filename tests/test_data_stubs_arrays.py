"""Data in memory, of a torch Dataset, or in a file of arrays."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import data_stubs
from data_stubs import from_arrays, from_dataset
from kit.errors import InputError


def example(n=60, size=8):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8), np.arange(n) % 3


def images_of(splits):
    """Image by id, of all parts."""
    parts = (splits.retain, splits.forget, splits.validation, splits.test)
    return {name: image for part in parts for name, image in zip(part.ids, part.images, strict=True)}


def test_every_image_is_in_one_part_and_the_named_rows_are_forgotten():
    images, labels = example()
    splits = from_arrays(images, labels, forget=[7, 3, 50])
    assert splits.forget.ids.tolist() == ["image-000003", "image-000007", "image-000050"]
    found = images_of(splits)
    assert len(found) == 60
    assert all(np.array_equal(found[f"image-{row:06d}"], images[row]) for row in range(60))
    assert len(splits.validation) + len(splits.test) == 11
    mask = np.isin(np.arange(60), [7, 3, 50])
    assert np.array_equal(from_arrays(images, labels, forget=mask).forget.ids, splits.forget.ids)


def test_the_only_image_of_a_class_is_trained_on():
    images, labels = example()
    labels[[10, 20, 30]] = 3, 4, 5
    splits = from_arrays(images, labels, forget=[21, 22])
    assert set(splits.retain.labels) == {0, 1, 2, 3, 4, 5}
    assert len(splits.validation) + len(splits.test) == 11


def test_a_policy_and_test_images_of_ones_own():
    images, labels = example()
    splits = from_arrays(images, labels, forget="class:dog", test=example(10), class_names=["cat", "dog", "eel"])
    assert set(splits.forget.labels) == {1}
    assert len(splits.retain) + len(splits.forget) == 60
    assert len(splits.test) == 5
    groups = np.arange(60) // 6
    splits = from_arrays(images, labels, forget="group:1", groups=groups, test=example(10))
    assert len(splits.forget) == 6
    assert len(np.unique(splits.forget.groups)) == 1


def test_numbers_within_one_channels_last_and_grey_images_are_taken():
    images, labels = example()
    last = images.transpose(0, 2, 3, 1)
    for other in (last, images / 255.0, images.astype(np.int64), torch.tensor(images), images.tolist()):
        splits = from_arrays(other, labels, forget=[0, 1])
        assert np.array_equal(images_of(splits)["image-000005"], images[5])
    assert from_arrays(images[:, 0], labels, forget=[0, 1]).retain.images.shape[1:] == (1, 8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((60, 5))}, r"images are \(60, 5\): expected \(n_examples, channels, height, width\)"),
        ({"images": np.random.default_rng(0).normal(size=(60, 3, 8, 8))}, "without normalisation"),
        ({"images": np.full((60, 3, 8, 8), np.nan)}, "without normalisation"),
        ({"images": np.full((60, 3, 8, 8), "x")}, "expected uint8, or numbers within 0..1"),
        ({"labels": np.zeros(59, int)}, "60 images and 59 labels"),
        ({"labels": np.full(60, 0.5)}, "expected whole numbers"),
        ({"labels": np.full(60, -1)}, "labels hold -1"),
        ({"labels": [["a"]] * 60}, "expected whole numbers"),
        ({"labels": np.full(60, np.inf)}, "expected whole numbers"),
        ({"labels": [0, [1]]}, "labels are of several sizes"),
        (
            {"images": [np.zeros((3, 8, 8 - row // 40)) for row in range(60)]},
            r"images are of several sizes, \(3, 8, 8\) and, item 40, \(3, 8, 7\): bring all to one size",
        ),
        ({"images": [[[0], [0, 1]]] * 60}, "images cannot be read as an array"),
        ({"class_names": 4}, r"class names are 4: expected the name of each class, as in \['cat', 'dog'\]"),
        ({"class_names": "cat"}, "class names are 'cat': expected the name of each class"),
        ({"forget": [60]}, "forget holds row 60: there are 60 images"),
        ({"forget": [1, 1]}, "names a row twice"),
        ({"forget": []}, "no example would be forgotten"),
        ({"forget": [0.5]}, "expected row numbers"),
        ({"forget": np.ones(60, bool)}, "too few to hold out a fifth"),
        ({"groups": [1, 2]}, "60 images and 2 groups"),
        ({"test": (np.zeros((4, 3, 8, 8), np.uint8), [0, 1])}, "4 test images and 2 labels"),
        ({"test": example(10, size=9)}, "all must have the same shape"),
        ({"class_names": ["cat"]}, "labels go up to 2: there are 1 classes"),
        ({"forget": "class:cow", "class_names": ["cat", "cog", "dog"]}, "'cow' is no class number or name: did you"),
        ({"forget": "random:600"}, "600 of 48 examples"),
    ],
)
def test_what_does_not_fit_is_one_line(change, message):
    images, labels = example()
    with pytest.raises(InputError, match=message) as error:
        from_arrays(**{"images": images, "labels": labels, **change})
    assert "\n" not in str(error.value)


class Items(Dataset):
    classes = ("a", "b", "c")

    def __init__(self, form, sizes=(8,)):
        self.images, self.labels = example()
        self.form, self.sizes = form, sizes

    def __len__(self):
        return 60

    def __getitem__(self, row):
        image = self.images[row][:, : self.sizes[row % len(self.sizes)]]
        return {"image": image, "label": int(self.labels[row])} if self.form is dict else (image, self.labels[row])


@pytest.mark.parametrize("form", [dict, tuple])
def test_a_data_set_gives_what_its_arrays_give(form):
    images, labels = example()
    expected = from_arrays(images, labels, forget=[2, 5], class_names=["a", "b", "c"])
    splits = from_dataset(Items(form), forget=[2, 5])
    assert data_stubs.fingerprint(splits) == data_stubs.fingerprint(expected)
    assert splits.name == "Items"


def test_a_data_set_without_labels_is_one_line():
    with pytest.raises(InputError, match=r"item 0 is of type int: expected \(image, label\)"):
        from_dataset([1, 2])


def test_tensors_with_gradients_are_taken():
    images, labels = example()
    tensor = (torch.tensor(images) / 255).requires_grad_()
    for given in (tensor, list(tensor)):
        assert np.array_equal(images_of(from_arrays(given, labels, forget=[1]))["image-000009"], images[9])
    pairs = list(zip(tensor, torch.tensor(labels, dtype=torch.float32).requires_grad_(), strict=True))
    assert np.array_equal(images_of(from_dataset(pairs, forget=[1]))["image-000009"], images[9])


OWN = """
import numpy as np
from torch.utils.data import Dataset, IterableDataset

class Items(Dataset):
    def __init__(self, item, n=40):
        self.item, self.n = item, n
    def __len__(self):
        return self.n
    def __getitem__(self, row):
        image = np.zeros((3, 8, 8), np.uint8)
        return self.item(image, row % 2 if row < 3 else 2)

def no_label(): return Items(lambda image, row: {"image": image, **({} if row == 2 else {"label": row})})
def no_image(): return Items(lambda image, row: {"picture": image})
def text(): return Items(lambda image, row: (image, ["ant", "bee", 2][row] if row < 2 else row))
def one_hot(): return Items(lambda image, row: (image, np.eye(4)[row]))
def half(): return Items(lambda image, row: (image, row + 0.5))
def nothing(): return Items(lambda image, row: (image, None))
def fails(): return Items(lambda image, row: (image, {0: 0, 1: 1}[row]))
def no_length(): return Items(None, None)
class Stream(IterableDataset):
    def __len__(self): return 3
    def __iter__(self): return iter(())
def names():
    made = Items(lambda image, row: (image, row))
    made.classes = 4
    return made
def unequal(): return [np.zeros((3, 8 + row // 30, 8)) for row in range(40)], np.arange(40) % 2
def words(): return np.zeros((40, 3, 8, 8)), ["ant", "bee"] * 20
def negative(): return np.zeros((40, 3, 8, 8)), np.arange(40) - 1
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_label", "item 3 has no label: it holds image"),
        ("no_image", "item 0 has no image: it holds picture"),
        ("text", "item 0 has the label 'ant': expected the number of its class, from 0"),
        ("one_hot", "item 0 has the label float64 (4,): expected the number of its class, from 0"),
        ("half", "item 0 has the label 0.5: expected the number"),
        ("nothing", "item 0 has the label None: expected the number"),
        ("fails", "item 3 cannot be read (KeyError: 2): mend its __getitem__"),
        ("no_length", "Items has no items by number: give it __len__ and __getitem__"),
        ("Stream", "Stream has no items by number: give it __len__ and __getitem__"),
        ("names", "class names are 4: expected the name of each class"),
        ("unequal", "images are of several sizes, (3, 8, 8) and, item 30, (3, 9, 8): bring all to one size"),
        ("words", "labels are <U3 (40,): expected whole numbers, one for each image"),
        ("negative", "labels hold -1: expected class numbers from 0"),
    ],
)
def test_mistakes_of_an_own_source_name_its_file_and_what_is_wrong(function, message, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(InputError) as error:
        data_stubs.load(f"{tmp_path}/own.py:{function}", forget="random:2")
    assert str(error.value).startswith(f"data source {tmp_path}/own.py:{function}: {message}")
    assert "\n" not in str(error.value)


def test_data_sets_of_tensors_and_bad_ones():
    images, labels = example()
    plain = TensorDataset(torch.tensor(images) / 255, torch.tensor(labels))
    assert np.array_equal(images_of(from_dataset(plain, forget=[1]))["image-000009"], images[9])
    with pytest.raises(InputError, match="item 1 of 3 x 7 x 8: bring all to one size"):
        from_dataset(Items(tuple, sizes=(8, 7)))
    with pytest.raises(InputError, match="has no examples"):
        from_dataset(TensorDataset(torch.zeros(0, 3, 8, 8), torch.zeros(0)))


def test_a_file_of_arrays_is_a_source(tmp_path):
    images, labels = example()
    held = {"test_images": example(10)[0], "test_labels": example(10)[1]}
    np.savez(tmp_path / "mine.npz", images=images, labels=labels, forget=[3, 4], class_names=["a", "b", "c"], **held)
    splits = data_stubs.load(f"arrays:{tmp_path}/mine.npz", forget="given")
    assert splits.forget.ids.tolist() == ["image-000003", "image-000004"]
    assert splits.class_names == ("a", "b", "c")
    assert len(data_stubs.load(f"arrays:{tmp_path}/mine.npz", forget="class:b", n_train=30).train) == 30
    with pytest.raises(InputError, match="leave out n_train"):
        data_stubs.load(f"arrays:{tmp_path}/mine.npz", forget="given", n_train=30)


def test_files_that_are_none(tmp_path):
    def told(name, message):
        with pytest.raises(InputError, match=message):
            data_stubs.load(f"arrays:{tmp_path}/{name}", forget="random:2")

    images, labels = example()
    np.savez(tmp_path / "other.npz", x=images)
    np.savez(tmp_path / "half.npz", images=images, labels=labels, test_images=images)
    np.savez(tmp_path / "objects.npz", images=np.array([{}], dtype=object), labels=labels)
    (tmp_path / "text.npz").write_text("text")
    told("absent.npz", "absent.npz: no such file")
    told("other.npz", "has no array images: it holds x")
    told("half.npz", "has one of test_images and test_labels")
    told("objects.npz", "is no readable .npz")
    told("text.npz", "is no readable .npz")
