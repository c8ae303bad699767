"""The number of checkpoints in a program's text: found where it means that, left alone where it is a width."""

from pathlib import Path

import pytest

from local_eval.dry_run.constants import reduce
from local_eval.dry_run.program import Code, Program

SAVE = "torch.save(a, f'{i}.pth')"


def reduced(text):
    program, changes = reduce(Program(Path("x.py"), None, (Code(None, text),)), 8)
    return [line.rstrip() for line in program.codes[0].text.splitlines()], len(changes)


@pytest.mark.parametrize("mark", ["\f", "\x85", "\u2028", "\x1c"])
def test_lines_are_those_of_python(mark):
    """What other programs take for the end of a line."""
    within, between = ("", mark) if mark == "\f" else (mark, "")
    text = f"a = '{within}'\n{between}\nb = 'abcdefghijklmnop'\nfor i in range(512):\n    {SAVE}"
    program, changes = reduce(Program(Path("x.py"), None, (Code(None, text),)), 8)
    assert program.codes[0].text == text.replace("512", "8  ")
    assert [change.line for change in changes] == [4] and program.line(None, 4) == "for i in range(8  ):"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"for i in range(512):\n    {SAVE}", "for i in range(8  ):"),
        (f"for i in range(8 * 64):\n    {SAVE}", "for i in range(8     ):"),
        (f"for i in range(2 ** 9):\n    {SAVE}", "for i in range(8     ):"),
        (f"for i in range(1 << 9):\n    {SAVE}", "for i in range(8     ):"),
        (f"for i in range(512 * 1):\n    {SAVE}", "for i in range(8      ):"),
        (f"N = 2 if DEBUG else 512\nfor i in range(N):\n    {SAVE}", "N = 2 if DEBUG else 8"),
        (f"N = given or 512\nfor i in range(N):\n    {SAVE}", "N = given or 8"),
        (f"while i < 512 and left() > 0:\n    {SAVE}; i += 1", "while i < 8   and left() > 0:"),
        (f"while not (i >= 512 or late()):\n    {SAVE}; i += 1", "while not (i >= 8   or late()):"),
        (f"s = np.random.choice(10**6, 512)\nfor i in s:\n    {SAVE}", "s = np.random.choice(10**6, 8  )"),
        (
            f"s = rng.integers(9, size=(512,)).tolist()\nfor i in s:\n    {SAVE}",
            "s = rng.integers(9, size=(8  ,)).tolist()",
        ),
        (f"while True:\n    {SAVE}; i += 1\n    if i == 512: break", "    if i == 8  : break"),
    ],
)
def test_what_means_the_number_of_checkpoints_is_reduced(text, line):
    lines, n_changes = reduced(text)
    assert line in lines
    assert n_changes == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"def w(r):\n  for i in range(r * 256, (r + 1) * 256):\n    {SAVE}",
            "  for i in range(r * 4  , (r + 1) * 4  ):",
        ),
        (f"def w(r):\n  for i in range(256):\n    seed(r * 256 + i)\n    {SAVE}", "    seed(r * 4   + i)"),
        (
            f"def w(r):\n  for i in range(128 * r, 128 * r + 128):\n    {SAVE}",
            "  for i in range(2   * r, 2   * r + 2  ):",
        ),
    ],
)
def test_equal_parts_of_several_workers_are_reduced_together(text, expected):
    lines, n_changes = reduced(text)
    assert expected in lines
    assert n_changes in (2, 3)


@pytest.mark.parametrize(
    "text",
    [
        f"for i in range(256):\n    {SAVE}",
        f"x = 256 * y\nfor i in range(9):\n    {SAVE}",
        f"net = nn.Linear(k * 256, 10)\nfor i in range(256):\n    {SAVE}",
        "nn.Linear(512, 10)",
        "nn.Linear(8 * 64, 10)",
        "batch_size = 2 if DEBUG else 512\nloader = DataLoader(a, batch_size)",
        "while x < 512 and y: x += 1",
        "h = 256 + 256",
        "rows = np.random.choice(len(data), 512)\nbatch = data[rows]",
        "n = 10 ** 10 ** 10",
    ],
)
def test_other_numbers_stay(text):
    assert reduced(text) == (text.splitlines(), 0)
