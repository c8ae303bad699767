"""Folders and zips of images: what is read, what is refused, and the cache of decoded images."""

import io
import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_stubs import fingerprint, image_folder, image_listing, load
from data_stubs.image_folder import decode, load_source
from kit.errors import InputError


def encoded(seed: int, kind: str = "PNG", size: tuple[int, int] = (5, 4), mode: str = "RGB") -> bytes:
    """A random image of (width, height) pixels."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    return stream.getvalue()


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


@pytest.fixture
def files() -> dict[str, bytes]:
    """8 training and 5 test images of two classes; JPEG and PNG, one of them grey, one with transparency."""
    made = {}
    for split, counts in (("train", (5, 3)), ("test", (3, 2))):
        for class_name, count in zip(("cat", "ant"), counts, strict=True):
            for number in range(count):
                kind, suffix = (("PNG", "png"), ("JPEG", "jpg"), ("JPEG", "JPEG"))[number % 3]
                made[f"{split}/{class_name}/{number}.{suffix}"] = encoded(len(made), kind)
    made["train/cat/0.png"] = encoded(100, mode="L")
    made["train/ant/0.png"] = encoded(101, mode="RGBA")
    return made


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path: Path, files: dict[str, bytes], top: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(top + name, content)
    return path


LAYOUTS = {
    "folder": lambda tmp_path, files: write_folder(tmp_path / "images", files),
    "folder with top": lambda tmp_path, files: write_folder(tmp_path / "images/top", files).parent,
    "zip": lambda tmp_path, files: write_zip(tmp_path / "images.zip", files),
    "zip with top": lambda tmp_path, files: write_zip(tmp_path / "images.zip", files, "top/"),
}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return LAYOUTS[request.param]


def test_every_layout_gives_the_same_images(layout, files, tmp_path):
    noise = {"README.md": b"x", "train/README.md": b"x", "train/cat/notes.txt": b"x", "train/cat/._0.png": b"x"}
    source = load_source(layout(tmp_path, files | noise), tmp_path / "cache")
    assert (source.name, source.class_names) == ("images", ("ant", "cat"))
    names = sorted((name for name in files if name.startswith("train/")), key=lambda name: name.split("/"))
    assert source.train.ids.tolist() == names and source.train.labels.tolist() == [0] * 3 + [1] * 5
    assert (len(source.validation), len(source.test)) == (2, 3)
    for part in (source.train, source.validation, source.test):
        for name, image, label in zip(part.ids, part.images, part.labels, strict=True):
            np.testing.assert_array_equal(image, pixels_of(files[name]))
            assert source.class_names[label] == name.split("/")[1]


def test_load_by_name_with_every_argument(files, tmp_path):
    path = write_zip(tmp_path / "images.zip", files)
    splits = load(f"image-folder:{path}", forget="random:1", n_train=6, seed=1, cache_dir=tmp_path / "cache")
    assert (len(splits.retain), len(splits.forget)) == (5, 1)


def cached_files(tmp_path):
    return sorted((tmp_path / "cache").iterdir())


def test_second_load_decodes_nothing(layout, files, tmp_path, monkeypatch):
    path = layout(tmp_path, files)
    first = load_source(path, tmp_path / "cache")
    assert [file.suffix for file in cached_files(tmp_path)] == [".crc32", ".npy"]
    moved = path.rename(tmp_path / f"moved{path.suffix}")
    monkeypatch.setattr(image_folder, "decode", None)
    second = load_source(moved, tmp_path / "cache")
    np.testing.assert_array_equal(second.train.images, first.train.images)
    np.testing.assert_array_equal(second.test.images, first.test.images)
    assert not second.train.images.flags.writeable


def flip_a_pixel(file: Path):
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        flip_a_pixel,
        lambda file: file.write_bytes(file.read_bytes()[:-10]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"no array"),
        lambda file: np.save(file, np.zeros((13, 3, 4, 4), dtype=np.uint8)),
        lambda file: np.save(file, np.array([{}], dtype=object)),
        lambda file: file.with_suffix(".crc32").unlink(),
        lambda file: file.with_suffix(".crc32").write_bytes(b"\xff"),
    ],
)
def test_a_damaged_cache_is_rebuilt(files, tmp_path, harm):
    path = write_zip(tmp_path / "images.zip", files)
    first = load_source(path, tmp_path / "cache").train.images.copy()
    checksum, array = cached_files(tmp_path)
    intact = array.read_bytes(), checksum.read_bytes()
    harm(array)
    np.testing.assert_array_equal(load_source(path, tmp_path / "cache").train.images, first)
    assert cached_files(tmp_path) == [checksum, array]
    assert (array.read_bytes(), checksum.read_bytes()) == intact


def test_changed_images_are_decoded_again(files, tmp_path):
    path = write_folder(tmp_path / "images", files)
    load_source(path, tmp_path / "cache")
    changed = path / "train/cat/3.png"
    files["train/cat/3.png"] = encoded(77)
    changed.write_bytes(files["train/cat/3.png"])
    os.utime(changed, ns=(1, 1))
    train = load_source(path, tmp_path / "cache").train
    np.testing.assert_array_equal(train.images[train.ids.tolist().index("train/cat/3.png")], pixels_of(encoded(77)))


def huge_png(width: int, height: int) -> bytes:
    """A header that declares many pixels and no data."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + end


BROKEN = {
    "truncated JPEG": (encoded(5, "JPEG")[:-80], "cannot be decoded"),
    "truncated PNG": (encoded(5)[:-40], "cannot be decoded"),
    "text": (b"not an image", "no JPEG or PNG"),
    "empty": (b"", "no JPEG or PNG"),
    "GIF in disguise": (encoded(5, "GIF"), "no JPEG or PNG"),
    "other size": (encoded(5, size=(6, 4)), "image is 6 x 4"),
    "turned": (encoded(5, size=(4, 5)), "image is 4 x 5"),
    "many pixels": (huge_png(5000, 5000), "5000 x 5000 pixels"),
    "very many pixels": (huge_png(60000, 60000), "decompression bomb"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_images_are_named_and_leave_no_cache(layout, files, tmp_path, case):
    content, message = BROKEN[case]
    files["train/cat/2.JPEG"] = content
    with pytest.raises(InputError) as error:
        load_source(layout(tmp_path, files), tmp_path / "cache")
    assert "train/cat/2.JPEG" in str(error.value) and message in str(error.value)
    assert "\n" not in str(error.value) and cached_files(tmp_path) == []


def test_sixteen_bits_of_grey_keep_their_shades():
    ramp = np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    assert np.array_equal(decode(buffer.getvalue(), "ramp"), np.broadcast_to((ramp >> 8).astype(np.uint8), (3, 32, 32)))


def test_missing_images_are_named(files, tmp_path, monkeypatch):
    path = write_folder(tmp_path / "images", files)
    (path / "train/cat/9.png").symlink_to("nowhere.png")
    with pytest.raises(InputError, match=r"train/cat/9.png: image is missing"):
        load_source(path, tmp_path / "cache")
    (path / "train/cat/9.png").unlink()
    with image_listing.listing_of(path) as listing:
        (path / "train/cat/0.png").unlink()
        member = next(member for member in listing.members if member.name == "train/cat/0.png")
        with pytest.raises(InputError, match=r"train/cat/0.png: image is missing"):
            listing.read(member)


def test_a_damaged_zip_member_is_named(files, tmp_path):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:  # stored, so that the content can be found and changed
        for name, content in files.items():
            archive.writestr(name, content)
    harmed = path.read_bytes().replace(files["train/cat/3.png"][-30:], b"?" * 30)
    path.write_bytes(harmed)
    with pytest.raises(InputError, match=r"train/cat/3.png: image cannot be unpacked"):
        load_source(path, tmp_path / "cache")


def test_files_over_the_size_limit_are_refused_unread(layout, files, tmp_path, monkeypatch):
    monkeypatch.setattr(image_listing, "MAX_IMAGE_BYTES", 1_000_000)
    files["train/cat/3.png"] = bytes(2_000_000)  # a few kB in a zip
    with pytest.raises(InputError, match=r"train/cat/3.png: image has 2 MB: at most 1 MB"):
        load_source(layout(tmp_path, files), tmp_path / "cache")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda files: {}, "has no images: expected train/<class>/"),
        (lambda files: {n: c for n, c in files.items() if "test/" in n}, r"no images in train/<class>/"),
        (lambda files: {n: c for n, c in files.items() if "train/" in n}, r"no images in test/<class>/"),
        (lambda files: files | {"test/dog/0.png": encoded(1)}, "test/dog has no images in train/dog"),
        (
            lambda files: {n: c for n, c in files.items() if "train/" in n or n == "test/cat/0.png"},
            "1 held-out image",
        ),
    ],
)
def test_other_layouts_are_refused_in_one_line(layout, files, tmp_path, change, message):
    files = {"README.md": b"x"} | change(files)
    with pytest.raises(InputError, match=message) as error:
        load_source(layout(tmp_path, files), tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_images_of_any_size_are_scaled_where_asked(layout, files, tmp_path):
    files["train/cat/2.JPEG"], files["test/ant/0.png"] = encoded(5, "JPEG", (60, 40)), encoded(6, size=(3, 9))
    path = layout(tmp_path, files)
    with pytest.raises(
        InputError, match=r"image is .* x .*: have all scaled by --size 32 \(as a source: image-folder@"
    ):
        load_source(path, tmp_path / "cache")
    splits = load(f"image-folder@8:{path}", forget="random:1", cache_dir=tmp_path / "cache")
    assert splits.retain.images.shape[1:] == (3, 8, 8)
    source = load_source(path, tmp_path / "cache", size=40)
    image = source.train.images[source.train.ids.tolist().index("train/cat/2.JPEG")]
    np.testing.assert_array_equal(image, pixels_of(files["train/cat/2.JPEG"])[:, :, 10:50])  # its middle, unscaled
    for name in ("image-folder@", "image-folder@x", "image-folder@0", "image-folder@-3", "image-folder@5000"):
        with pytest.raises(InputError, match=r"number of pixels|from 1 to 1024"):
            load(f"{name}:{path}", forget="random:1")


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("top", ["", "top/"])
def test_classes_without_train_and_test_are_split(archived, top, tmp_path):
    files = {f"{name}/{i}.png": encoded(i) for name, n in (("ant", 3), ("bee", 1), ("cat", 16)) for i in range(n)}
    files |= {"README.md": b"x", "cat/.hidden.png": b"x"}
    placed = {top + name: content for name, content in files.items()}
    path = write_zip(tmp_path / "a.zip", placed) if archived else write_folder(tmp_path / "a", placed)
    source = load_source(path, tmp_path / "cache")
    assert source.class_names == ("ant", "bee", "cat")
    assert len(source.train) == 16 and np.bincount(source.train.labels).min() == 1
    ids = [image_id for part in (source.train, source.validation, source.test) for image_id in part.ids.tolist()]
    assert sorted(ids) == sorted(name for name in files if name.endswith(".png") and "hidden" not in name)
    again = load_source(path, tmp_path / "cache", progress=False)
    assert again.train.ids.tolist() == source.train.ids.tolist()


def test_a_split_that_was_drawn_is_said(tmp_path, capsys):
    files = {f"{name}/{i}.png": encoded(i) for name in ("ant", "bee") for i in range(10)}
    load_source(write_folder(tmp_path / "a", files), tmp_path / "cache")
    assert capsys.readouterr().err == f"{tmp_path / 'a'}: has no train/ and test/: 4 images are held out\n"


@pytest.mark.parametrize("names", [["0.png", "1.png"], ["train/0.png", "test/1.png"], ["one/0.png", "one/1.png"]])
def test_images_without_classes_are_told_what_is_expected(names, tmp_path):
    files = {name: encoded(i) for i, name in enumerate(names)}
    for path in (write_folder(tmp_path / "a", files), write_zip(tmp_path / "a.zip", files)):
        with pytest.raises(
            InputError, match=r"no folder for each class of them: expected train/<class>/.*, or <class>/"
        ):
            load_source(path, tmp_path / "cache")


@pytest.mark.parametrize("name", ["folder", "zip"])
def test_images_in_two_places_are_refused(files, tmp_path, name):
    files["copy/train/cat/0.png"] = encoded(1)
    with pytest.raises(InputError, match=r"several folders \(\., copy\): keep one"):
        load_source(LAYOUTS[name](tmp_path, files), tmp_path / "cache")


def test_paths_that_are_neither_folder_nor_zip(tmp_path):
    (tmp_path / "data.zip").write_text("no zip")
    for name, message in (("data.zip", "neither a folder nor a readable .zip"), ("nowhere", "no such folder or .zip")):
        with pytest.raises(InputError, match=message):
            load_source(tmp_path / name, tmp_path / "cache")


def test_names_that_occur_twice_in_a_zip(files, tmp_path):
    path = write_zip(tmp_path / "images.zip", files)
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train/cat/0.png", encoded(1))
    with pytest.raises(InputError, match=r"has train/cat/0.png twice"):
        load_source(path, tmp_path / "cache")


def test_a_cache_that_cannot_be_written(files, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="give another cache folder"):
        load_source(write_zip(tmp_path / "images.zip", files), tmp_path / "cache")


def test_default_cache_folder(files, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    path = write_zip(tmp_path / "images.zip", files)
    one = load(f"image-folder:{path}", forget="random:1")
    assert len(list((tmp_path / "xdg/unlearning-kit").iterdir())) == 2
    shutil.rmtree(tmp_path / "xdg")
    assert fingerprint(load(f"image-folder:{path}", forget="random:1")) == fingerprint(one)


def test_a_path_may_begin_at_home(files, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "pictures", files)
    splits = load("image-folder:~/pictures", forget="random:2", cache_dir=tmp_path / "cache", progress=False)
    assert splits.class_names == ("ant", "cat")
