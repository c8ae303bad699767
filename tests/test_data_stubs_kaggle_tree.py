"""The input tree, read back by the standard library, Pillow and the kit."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data_stubs import kaggle_tree, load, split_forget, synthetic
from data_stubs.kaggle_tree import write_empty_tree, write_tree
from kit import competition
from kit.errors import InputError

PARTS = ("retain", "forget", "validation")


@pytest.fixture(scope="module")
def splits():
    return split_forget(synthetic.generate(1200, 60), "competition:0.1", 0)


@pytest.fixture
def state():
    return nn.Linear(4, 10).state_dict()


def rows_of(tree, split):
    with (tree / f"{split}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_tree_holds_what_the_contract_says(splits, state, tmp_path):
    tree = write_tree(splits, state, tmp_path / "input" / "tree")
    assert {entry.name for entry in tree.iterdir()} == {
        *("retain.csv", "forget.csv", "validation.csv", "images", "original_model.pth", "age_class_weights.json")
    }
    assert [entry.name for entry in tree.parent.iterdir()] == ["tree"], "temporary files are left"
    seen = set()
    for split in PARTS:
        part, rows = getattr(splits, split), rows_of(tree, split)
        assert list(rows[0]) == ["image_id", "age_group", "age", "person_id"] and len(rows) == len(part)
        for row, image, label, group in zip(rows, part.images, part.labels, part.groups, strict=True):
            folder, name = row["image_id"].split("-")
            with Image.open(tree / "images" / folder / f"{name}.png") as written:
                assert written.mode == "RGB"
                np.testing.assert_array_equal(np.asarray(written).transpose(2, 0, 1), image)
            assert (int(row["age_group"]), int(row["person_id"])) == (label, group)
            assert int(row["age"]) // 10 == label
            seen.add(row["image_id"])
    assert len(seen) == sum(len(getattr(splits, split)) for split in PARTS)
    assert len(list((tree / "images").glob("*/*.png"))) == len(seen)
    retain, forget = ({row["person_id"] for row in rows_of(tree, split)} for split in ("retain", "forget"))
    assert not retain & forget
    counts = json.loads((tree / "age_class_weights.json").read_text())
    assert counts == {str(label): int((splits.train.labels == label).sum()) for label in range(10)}
    saved = torch.load(tree / "original_model.pth", weights_only=True)
    assert list(saved) == list(state) and all(torch.equal(saved[name], state[name]) for name in state)


def test_the_kit_reads_the_tree(splits, tmp_path):
    tree = write_tree(splits, competition.resnet18().state_dict(), tmp_path / "tree")
    loaders = competition.read_tree(tree, progress=False)
    for split, loader in zip(PARTS, loaders, strict=True):
        part = getattr(splits, split)
        images = loader.dataset.images.numpy()
        assert sorted(image.tobytes() for image in images) == sorted(image.tobytes() for image in part.images)
    competition.load_original(tree)
    assert not competition.is_stand_in(tree)


def test_image_ids_do_not_tell_the_split(splits, state, tmp_path):
    tree = write_tree(splits, state, tmp_path / "tree")
    numbers = {split: [1000 * int(a) + int(b) for a, b in split_ids(tree, split)] for split in ("retain", "forget")}
    assert min(numbers["retain"]) < min(numbers["forget"]) < max(numbers["forget"]) < max(numbers["retain"])


def split_ids(tree, split):
    return [row["image_id"].split("-") for row in rows_of(tree, split)]


def test_ages_are_written(splits, state, tmp_path):
    ages = {split: np.arange(len(getattr(splits, split))) for split in PARTS}
    tree = write_tree(splits, state, tmp_path / "tree", ages=ages)
    assert [int(row["age"]) for row in rows_of(tree, "forget")] == ages["forget"].tolist()
    ages["validation"] = ages["validation"][:-1]
    with pytest.raises(InputError, match=r"ages\['validation'\]"):
        write_tree(splits, state, tmp_path / "tree", ages=ages)


def test_a_tree_is_replaced_and_other_folders_are_refused(splits, state, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    write_empty_tree(tree)
    assert [entry.name for entry in tree.iterdir()] == ["empty.txt"] and competition.is_stand_in(tree)
    write_tree(splits, state, tree)
    assert not competition.is_stand_in(tree)
    write_empty_tree(tree)
    assert [entry.name for entry in tree.iterdir()] == ["empty.txt"]
    (tree / "thesis.tex").write_text("mine")
    for write in (lambda: write_tree(splits, state, tree), lambda: write_empty_tree(tree)):
        with pytest.raises(InputError, match="holds something else") as error:
            write()
        assert str(tree) in str(error.value)
    assert (tree / "thesis.tex").read_text() == "mine"
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is no folder"):
        write_empty_tree(tmp_path / "file")


def test_the_folder_one_is_in_is_refused(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match=r"^\.: cannot be replaced \(.*\): choose another folder$"):
        write_empty_tree(Path())
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("failure", [RuntimeError("stopped"), OSError(28, "No space left on device")])
def test_nothing_half_written_stays(splits, state, tmp_path, monkeypatch, failure):
    tree = write_empty_tree(tmp_path / "tree")

    def fail(*arguments):
        raise failure

    monkeypatch.setattr(kaggle_tree.torch, "save", fail)
    with pytest.raises(InputError if isinstance(failure, OSError) else RuntimeError, match=r"stopped|No space left"):
        write_tree(splits, state, tree)
    assert [entry.name for entry in tmp_path.iterdir()] == ["tree"]
    assert [entry.name for entry in tree.iterdir()] == ["empty.txt"]


def test_unsuitable_splits(splits, state, tmp_path):
    grey = {
        part: dataclasses.replace(getattr(splits, part), images=getattr(splits, part).images[:, :1])
        for part in (*PARTS, "test")
    }
    with pytest.raises(InputError, match="1 channels"):
        write_tree(dataclasses.replace(splits, **grey), state, tmp_path / "tree")
    with pytest.raises(InputError, match="11 classes"):
        write_tree(dataclasses.replace(splits, class_names=("x",) * 11), state, tmp_path / "tree")
    assert not list(tmp_path.iterdir())


def test_digits_fit_the_tree_too(state, tmp_path):
    digits = load("digits", forget="random:0.02", n_train=200)
    loaders = competition.read_tree(write_tree(digits, state, tmp_path / "tree"), progress=False)
    assert [len(loader.dataset) for loader in loaders] == [196, 4, 250]
