import csv

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

from kit import competition
from kit.competition import COLUMNS, TensorLoader, image_path, load_original, load_state, read_tree
from kit.errors import InputError
from tests.conftest import dataset


def write_tree(root, n=6):
    generator = torch.Generator().manual_seed(0)
    for split in competition.SPLITS:
        with (root / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for i in reversed(range(n)):  # not in the order of their paths
                image_id = f"{split}{i % 2}-{i}"
                writer.writerow([image_id, i % 10, 20 + i, f"person{i // 2}"])
                path = image_path(root, image_id)
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(path)
    return root


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path)


def test_tensor_loader_gives_the_batches_of_a_plain_loader_in_the_same_order():
    fast, plain = TensorLoader(dataset(50, 1), 8, shuffle=True), DataLoader(dataset(50, 1), 8, shuffle=True)
    torch.manual_seed(3)
    expected = [batch for _ in range(2) for batch in plain]
    torch.manual_seed(3)
    got = [batch for _ in range(2) for batch in fast]
    assert len(got) == len(expected) == 14
    for ours, theirs in zip(got, expected, strict=True):
        assert list(ours) == list(theirs) == ["image", *COLUMNS]
        assert ours["image_id"] == theirs["image_id"]
        for name in ("image", "age_group", "age", "person_id"):
            assert ours[name].dtype == theirs[name].dtype
            assert torch.equal(ours[name], theirs[name])


def test_an_item_is_the_starters_dict_and_its_float_image_replaces_the_cached_one():
    data = dataset(5, 0)
    before = data.examples[2]["image"]
    item = data[2]
    assert list(item) == ["image", "image_id", "age_group", "age", "person_id"]
    assert item["image"].dtype == torch.float32
    assert torch.equal(item["image"], before.float())
    assert data.examples[2]["image"] is item["image"]


def test_a_participant_may_wrap_the_data_sets_of_the_loaders(loaders):
    mixed = DataLoader(ConcatDataset([loaders.retain.dataset, loaders.forget.dataset]), batch_size=16)
    assert sum(len(batch["image"]) for batch in mixed) == 70


def test_the_tree_is_read_as_the_starter_reads_it(tree):
    loaders = read_tree(tree, batch_size=4, progress=False)
    examples = loaders.forget.dataset.examples
    assert [e["image_id"] for e in examples] == [f"forget{i % 2}-{i}" for i in (0, 2, 4, 1, 3, 5)]
    assert examples[1]["person_id"] == "person1"
    assert (examples[1]["age_group"], examples[1]["age"]) == (2, 22)
    assert [len(loader.dataset) for loader in loaders] == [6, 6, 6]
    batch = next(iter(loaders.validation))
    assert batch["image"].shape == (4, 3, 32, 32)
    assert 200 < batch["image"].max() <= 255


def test_a_column_is_of_numbers_or_of_texts_as_a_whole(tree):
    def changed(rows):
        rows[2][2], rows[4][3] = "", "9" * 20

    rewrite(tree / "forget.csv", changed)
    for loader in (TensorLoader, DataLoader):
        forget = read_tree(tree, batch_size=4, loader=loader, progress=False).forget
        ages, persons = ([value for batch in forget for value in batch[key]] for key in ("age", "person_id"))
        assert {type(value) for value in ages + persons} == {str} and "" in ages and "9" * 20 in persons


def rewrite(path, change):
    rows = list(csv.reader(path.open()))
    change(rows)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.__delitem__(slice(1, None)), "has no rows"),
        (lambda rows: rows[0].__setitem__(1, "label"), "column age_group is missing"),
        (lambda rows: rows[2].__setitem__(1, "10"), r"line 3: age_group is '10': labels are 0 to 9"),
        (lambda rows: rows[2].__setitem__(1, "-1"), r"line 3: age_group is '-1'"),
        (lambda rows: rows[2].__setitem__(1, "old"), r"line 3: age_group is 'old'"),
        (lambda rows: rows[1].__setitem__(0, "../..-passwd"), r"line 2: image_id is '\.\./\.\.-passwd'"),
        (lambda rows: rows[1].__setitem__(0, "plain"), "is missing"),
        (lambda rows: rows[3].__delitem__(slice(2, None)), r"line 4: has too few columns"),
    ],
)
def test_a_malformed_table_is_told_with_file_and_line(tree, change, message):
    rewrite(tree / "forget.csv", change)
    with pytest.raises(InputError, match=message) as caught:
        read_tree(tree, progress=False)
    assert str(tree) in str(caught.value)


def test_a_missing_and_a_broken_image_are_named(tree):
    path = image_path(tree, "retain0-2")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"retain0/2\.png: image is no readable PNG"):
        read_tree(tree, progress=False)
    path.unlink()
    with pytest.raises(InputError, match=r"retain0/2\.png: image is missing"):
        read_tree(tree, progress=False)


def test_images_of_two_sizes_are_refused(tree):
    Image.new("RGB", (8, 8)).save(image_path(tree, "retain0-2"))
    with pytest.raises(InputError, match=r"retain0/2\.png: image is \(3, 8, 8\)"):
        read_tree(tree, progress=False)


def test_a_tree_without_tables_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"retain\.csv: cannot be read"):
        read_tree(tmp_path, progress=False)


def test_resnet18_is_the_competitions():
    net = competition.resnet18()
    assert len(net.state_dict()) == 122
    assert sum(p.numel() for p in net.parameters()) == 11_181_642


def test_states_that_do_not_fit_are_told(tmp_path, model):
    state = model.state_dict()
    first = next(iter(state))
    faults = {
        "no dict": [1, 2],
        "1 entries are missing": {k: v for k, v in state.items() if k != first},
        "1 entries are unknown, first 'more'": {**state, "more": torch.zeros(1)},
        r"has shape \(3,\), expected": {**state, first: torch.zeros(3)},
        "has NaN or infinite values": {**state, first: torch.full_like(state[first], np.nan)},
        "is torch.int64, expected torch.float32": {**state, first: torch.zeros_like(state[first], dtype=torch.int64)},
    }
    for message, content in faults.items():
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(InputError, match=message):
            load_state(tmp_path / "x.pth", model)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code in a checkpoint ran')",))


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    torch.save({"conv1.weight": Evil()}, tmp_path / competition.MODEL_FILE)
    with pytest.raises(InputError, match="is no state dict that loads with weights_only"):
        load_original(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        load_original(tmp_path / "elsewhere")
