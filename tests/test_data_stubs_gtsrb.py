"""Traffic signs: parts of whole signs, categories, any size of image, the official test set; and flipped labels."""

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from data_stubs import fingerprint, gtsrb, load, load_source
from kit.errors import InputError
from local_eval.evaluate import forgotten_classes

N_FRAMES = 3
SIGNS = {"super": 500, "other": 12}  # signs of each class of speed limits that the super-categories need, of the others


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Every class with enough signs; each image's colour says its class and sign, sizes differ."""
    folder = tmp_path_factory.mktemp("gtsrb")
    for number in range(gtsrb.N_CLASSES):
        directory = folder / "gtsrb" / "GTSRB" / "Training" / f"{number:05d}"
        directory.mkdir(parents=True)
        for sign in range(70 if number in (*range(6), 7, 8) else 10 + number % 3):
            for frame in range(N_FRAMES):
                size = (20 + frame, 30 + number % 5)
                Image.new("RGB", size, (number, sign, 100)).save(directory / f"{sign:05d}_{frame:05d}.ppm")
    return folder


def signs(part):
    return set(part.groups.tolist())


@pytest.mark.parametrize("source", ["gtsrb", "gtsrb:super", "gtsrb:ten"])
def test_no_sign_is_in_two_parts_and_every_frame_keeps_its_image(root, tmp_path, source):
    found = load_source(source, data_root=root, cache_dir=tmp_path, progress=False)
    parts = (found.train, found.validation, found.test)
    assert found.train.images.shape[1:] == (3, 32, 32)
    for part in parts:
        assert len(part) == N_FRAMES * len(signs(part))
        numbers = np.array([int(name[:5]) for name in part.ids])
        tracks = np.array([int(name[6:11]) for name in part.ids])
        np.testing.assert_array_equal(part.images[:, 0].max((1, 2)), numbers)
        np.testing.assert_array_equal(part.images[:, 1].max((1, 2)), tracks)
        assert {len(set(part.labels[part.groups == sign])) for sign in signs(part)} == {1}
    assert sum(map(len, map(signs, parts))) == len(set.union(*map(signs, parts)))


def test_classes_are_those_asked_for(root, tmp_path):
    options = {"data_root": root, "cache_dir": tmp_path, "progress": False}
    whole, ten, five = (load_source(name, **options) for name in ("gtsrb", "gtsrb:ten", "gtsrb:super"))
    assert len(whole.class_names) == 43 and set(whole.train.labels) == set(range(43))
    assert len(ten.class_names) == 10
    assert {int(name[:5]) for name in ten.train.ids} == {0, 1, 2, 3, 4, 5, 7, 8, 11, 14}  # the largest here
    signs_of = np.bincount(five.train.labels) // N_FRAMES
    assert signs_of.tolist() == [300, 60, 40, 30, 20]
    limits = {int(name[:5]) for name in five.train.ids[five.train.labels == 0]}
    assert limits <= {0, 1, 2, 3, 4, 5, 7, 8}


def test_the_competitions_policy_forgets_whole_signs_of_the_first_two_classes(root, tmp_path):
    splits = load("gtsrb:super", forget="competition", data_root=root, cache_dir=tmp_path, progress=False)
    assert np.bincount(splits.forget.labels).tolist() == [7 * N_FRAMES, 2 * N_FRAMES]  # 2%, four fifths of class 0
    assert not signs(splits.forget) & signs(splits.retain)


def test_images_are_decoded_once(root, tmp_path, monkeypatch):
    options = {"data_root": root, "cache_dir": tmp_path, "progress": False}
    first = load("gtsrb:ten", forget="group:2", **options)
    monkeypatch.setattr(gtsrb, "_decode", None)
    assert fingerprint(load("gtsrb:ten", forget="group:2", **options)) == fingerprint(first)


def test_the_official_test_set_where_it_is_there(root, tmp_path):
    folder = root / "gtsrb" / "GTSRB" / "Final_Test" / "Images"
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["Filename;Width;ClassId"]
    for row, number in enumerate((3, 20, 42)):  # 42 is in no super-category
        Image.new("RGB", (40, 40), (number, 0, 0)).save(folder / f"{row:05d}.ppm")
        lines.append(f"{row:05d}.ppm;40;{number}")
    table = root / "gtsrb" / "GT-final_test.csv"
    table.write_text("\n".join(lines))
    found = load_source("gtsrb:super,official", data_root=root, cache_dir=tmp_path, progress=False)
    assert found.test.labels.tolist() == [0, 1] and found.test.ids.tolist() == ["test/00000", "test/00001"]
    assert not signs(found.test) & (signs(found.train) | signs(found.validation))
    (folder / "00001.ppm").unlink()
    with pytest.raises(InputError, match=r"00001\.ppm: image is missing"):
        load_source("gtsrb:super,official", data_root=root, cache_dir=tmp_path, progress=False)
    for text in ("nothing", *(f"Filename;ClassId\n00000.ppm{rest}" for rest in (";43", ";-1", ";stop", ""))):
        table.write_text(text)
        with pytest.raises(InputError, match="is not GTSRB's table of test labels"):
            load_source("gtsrb:super,official", data_root=root, cache_dir=tmp_path, progress=False)


@pytest.mark.parametrize("name", ["backup", "00050", "0"])
def test_another_folder_among_the_classes_is_one_line(tmp_path, name):
    folder = tmp_path / "gtsrb" / "GTSRB" / "Training" / name
    folder.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(folder / "00000_00000.ppm")
    with pytest.raises(InputError, match=rf"/{name}: is no class of GTSRB, 00000 to 00042: move it out of Training"):
        load_source("gtsrb", data_root=tmp_path, cache_dir=tmp_path / "cache", progress=False)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("gtsrb:twelve", "gtsrb:twelve: is unknown: write gtsrb"),
        ("gtsrb:super,super", "is unknown"),
        ("gtsrb:noise=much", "is no share"),
        ("gtsrb:noise=1.5", "is no share"),
        ("cifar10:noise=", "is no share"),
    ],
)
def test_bad_words_are_one_line(root, tmp_path, source, told):
    with pytest.raises(InputError, match=told) as error:
        load(source, forget="random:5", data_root=root, cache_dir=tmp_path, progress=False)
    assert "\n" not in str(error.value)


def test_missing_and_broken_data_are_one_line(root, tmp_path, monkeypatch):
    def no_network(folder, split, download):
        raise OSError("Name or service not known")

    monkeypatch.setattr(datasets, "GTSRB", no_network)
    with pytest.raises(InputError, match=r"holds no gtsrb/GTSRB \(train\) and the download failed \(Name or service"):
        load_source("gtsrb", data_root=tmp_path / "nothing")
    training = tmp_path / "gtsrb" / "GTSRB" / "Training" / "00000"
    training.mkdir(parents=True)
    with pytest.raises(InputError, match=r"has no <class>/\*\.ppm"):
        load_source("gtsrb", data_root=tmp_path)
    (training / "00000_00000.ppm").write_bytes(b"P6 nothing")
    with pytest.raises(InputError, match=r"00000_00000\.ppm: image cannot be decoded"):
        load_source("gtsrb", data_root=tmp_path, cache_dir=tmp_path / "cache", progress=False)
    Image.new("RGB", (32, 32)).save(training / "00000_00000.ppm")
    with pytest.raises(InputError, match="label 0 has 1 signs: are all training images unpacked"):
        load_source("gtsrb", data_root=tmp_path, cache_dir=tmp_path / "cache", progress=False)


def test_noise_flips_the_share_of_labels_in_every_part_and_nothing_else():
    clean, noisy = (load(name, forget="random:100") for name in ("digits", "digits:noise=0.1"))
    assert noisy.name == "digits, 10% of the labels flipped"
    for name in ("retain", "forget", "validation", "test"):
        a, b = getattr(clean, name), getattr(noisy, name)
        assert (a.labels != b.labels).sum() == round(0.1 * len(a))
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.ids, b.ids)
    again, other = (load("digits:noise=0.1", forget="random:100", seed=seed) for seed in (0, 1))
    assert fingerprint(again) == fingerprint(noisy) != fingerprint(other)


def test_a_forgotten_class_comes_back_by_no_flipped_label():
    clean, noisy = (load(name, forget="class:3") for name in ("digits", "digits:noise=0.5"))
    assert list(forgotten_classes(noisy)) == [3]
    flipped = noisy.retain.labels != clean.retain.labels
    assert flipped.sum() == round(0.5 * len(flipped)) and not (noisy.retain.labels == 3).any()
    assert (noisy.test.labels == 3).any()


def test_flipped_labels_go_to_every_other_class_alike():
    clean, noisy = (load(name, forget="random:100") for name in ("digits", "digits:noise=0.9"))
    moved = (noisy.retain.labels - clean.retain.labels) % 10
    counts = np.bincount(moved[moved > 0], minlength=10)[1:]
    assert counts.min() > 0.7 * counts.mean() and counts.max() < 1.3 * counts.mean()
