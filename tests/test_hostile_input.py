"""Hostile files: nothing in them runs, nothing is written outside, memory and time stay bounded, one line tells why."""

import io
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kit.archive import pack
from kit.competition import _read_image, load_state, read_rows
from kit.errors import InputError, printable
from kit.tools.verify import verdict_lines, verify
from local_eval.__main__ import main as local_eval
from local_eval.archived import _count
from local_eval.models import tinyconv
from tests.hostile_files import MARK, N_CHECKPOINTS, good, original, write_corpus

ROOT = Path(__file__).parents[1]
MEMORY_BYTES = 150 << 20  # beyond what verifying an honest archive takes; the bombs unpack to 512 MB


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("outside") / "of" / "hostile")


@pytest.fixture
def folder(corpus):
    """The corpus's folder; after the test it must hold what it held, and no mark of code that ran."""
    root = corpus["archives"][0].parents[1]
    before = {path: path.stat().st_size for path in root.parents[1].rglob("*")}
    yield root
    assert {path: path.stat().st_size for path in root.parents[1].rglob("*")} == before
    assert not (root / MARK).exists()


FOUND = {  # of some, what must be told
    "code_in_a_pickle": "does not load",
    "code_in_an_old_pickle": "does not load",
    "slip_upwards": "'../../outside'",
    "symbolic_link": "is a link or another special file",
    "device": "is a link or another special file",
    "a_member_twice": "1 twice",
    "control_characters": r"\x1b",
    "very_long_name": "1 with another name such as 'aaa",
    "bomb": "bytes where at most",
    "bomb_within_a_checkpoint": "unpacks to more than it holds",
    "one_part_many_times": "unpacks to more than it holds",
    "compressed_within": "unpacks to more than it holds",
    "bzip2": "is compressed in another way",
    "lzma": "is compressed in another way",
    "bomb_of_bzip2": "is compressed in another way",
    "a_million_members": "bytes of names",
    "huge_tensor_of_one_value": "has shape (1048576, 1048576)",
    "halves_of_one_value": "has shape (10000000000000,)",
    "meta_of_halves": "is no tensor with its entries in memory",
    "rows_of_halves": "is no tensor with its entries in memory",
    "too_large": "bytes where at most",
    "keys_with_control_characters": r"\x1b",
    "encrypted": "encrypted",
    "a_checkpoint_instead": "",
}


def test_no_hostile_archive_passes_and_each_is_told_in_one_printable_line(corpus, folder):
    for path in corpus["archives"]:
        start = time.process_time()
        checks = verify(path, N_CHECKPOINTS, original())
        assert time.process_time() - start < 5, path.name
        bad = [check for check in checks if not check.ok]
        assert bad, path.name
        for line in verdict_lines(checks):
            assert line.isprintable(), path.name
            assert len(line) < 1000, path.name
        assert FOUND.get(path.stem, "") in bad[0].found, path.name
        assert bad[0].remedy


def test_counting_the_members_of_an_archive_is_bounded_too(corpus, folder):
    for path in corpus["archives"]:
        try:
            assert 0 <= _count(path) < 1_000_000
        except InputError as error:
            assert printable(error).isprintable()


MEASURE = """
import json, resource, sys
from pathlib import Path
from kit.tools.verify import verify
from tests.hostile_files import N_CHECKPOINTS, original
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
paths = sorted(Path(sys.argv[1]).glob("archives/*.zip"))
verify(Path(sys.argv[2]), N_CHECKPOINTS, original())
found, before = {}, peak()
for path in paths:
    verify(path, N_CHECKPOINTS, original())
    found[path.stem], before = peak() - before, peak()
print(json.dumps(found))
"""


def honest(path):
    pack(path, map(io.BytesIO, good().values()))
    return path


def test_memory_stays_bounded(corpus, folder, tmp_path):
    arguments = [sys.executable, "-c", MEASURE, str(folder), str(honest(tmp_path / "good.zip"))]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    growth = json.loads(done.stdout)
    assert len(growth) == len(corpus["archives"])
    assert sum(growth.values()) < MEMORY_BYTES, growth


def test_the_corpus_would_be_noticed(tmp_path):
    """The honest archive that all of it is made from passes."""
    checks = verify(honest(tmp_path / "good.zip"), N_CHECKPOINTS, original())
    assert all(check.ok for check in checks), checks


def told(capsys, *argv):
    code = local_eval([str(argument) for argument in argv])
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), argv
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.rstrip("\n").isprintable()
    return err


def test_hostile_arrays_are_not_scored(corpus, folder, capsys):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in corpus["arrays"]:
        told(capsys, "score", "--confidences", path)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MEMORY_BYTES


def test_hostile_checkpoints_are_no_original_model(corpus, folder):
    for path in corpus["archives"]:
        if path.stem == "a_checkpoint_instead":  # a good one, only in the wrong place
            continue
        with pytest.raises(InputError) as refused:
            load_state(path, tinyconv())
        assert printable(refused.value).isprintable()


def test_hostile_tables_are_refused_with_the_line(corpus, folder):
    for path in corpus["tables"]:
        with pytest.raises(InputError) as refused:
            rows = read_rows(path)
            from kit.competition import image_path

            image = _read_image(image_path(path.parent, rows[0]["image_id"]))
            pytest.fail(f"{path.name} was read: {rows[0]} {image.shape}")
        assert path.name in str(refused.value) or "image is" in str(refused.value)
        assert len(printable(refused.value)) < 2100


def test_hostile_images_are_not_decoded(corpus, folder):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in corpus["images"]:
        with pytest.raises(InputError) as refused:
            pytest.fail(f"{path.name} was decoded: {_read_image(path).shape}")
        assert path.name in str(refused.value)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MEMORY_BYTES


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\nlines\tof text", "two lines of text"),
        ("\x1b[31mred\x07\x7f", r"\x1b[31mred\x07\x7f"),
        ("\u202eright to left", r"\u202eright to left"),
        ("ümläut", "ümläut"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_is_printed_cannot_steer_a_terminal(text, line):
    assert printable(text) == line
    assert printable("x" * 5000, 100) == "x" * 50 + " ... " + "x" * 50
