"""The flattener: several modules of the kit as the one that is pasted."""

import ast
import hashlib
import re
from pathlib import Path

import pytest

from kit import __version__
from kit.errors import InputError
from notebooks import flatten
from notebooks.fill import filled
from notebooks.flatten import parse_module

LOW = '''"""Low: what others stand on.

More.
"""
import math
import torch.nn.functional as F

A = 1
B = 2
# Why C.
C = math.pi


def f(x):
    """First.

    Second.
    """
    return F.relu(x) + A


def unused():
    return B
'''
HIGH = '''"""High."""
import math

from kit.low import C, f


class G:
    g = f(C)


def main():
    return G.g + math.e
'''
FLAT = '''import math

import torch.nn.functional as F

# ---- kit/low.py: Low: what others stand on.
A = 1

# Why C.
C = math.pi

def f(x):
    """First."""
    return F.relu(x) + A

# ---- kit/high.py: High.
class G:
    g = f(C)

def main():
    return G.g + math.e
'''


@pytest.fixture
def flattened(monkeypatch):
    """Flatten `main` of a kit of two modules, with some of their text replaced."""

    def flat(*changes):
        texts = {"kit.low": LOW, "kit.high": HIGH}
        for name, old, new in changes:
            assert texts[name].count(old) == 1
            texts[name] = texts[name].replace(old, new)
        modules = {name: parse_module(f"{name.replace('.', '/')}.py", text) for name, text in texts.items()}
        monkeypatch.setattr(flatten, "read_module", modules.__getitem__)
        return flatten.flatten([flatten.Import("kit.high", "main")], "a test")

    return flat


def test_what_is_reached_is_flattened_in_order(flattened):
    title, digest, text = flattened().split("\n", 2)
    assert title == f"# Unlearning Submission Kit {__version__}: a test"
    assert digest.endswith(hashlib.sha256(FLAT.encode()).hexdigest()[:16])
    assert text == FLAT


SPREAD = """\
@dataclass(
    frozen=True,
)
class Spread:
    def spread(
        self,
        first: int,
        second: str = 'a, b',
        *,
        third: Callable[[int, int], None] = abs,
        fourth: str = "whatever",
        fifth: int,
    ) -> None:
        kept = {
            "a": 1,  # why
        }
        return self.given(
            tuple(
                one
                for one in second
            ),
        )
"""
FILLED = """\
@dataclass(frozen=True)
class Spread:
    def spread(self, first: int, second: str = 'a, b', *, third: Callable[[int, int], None] = abs,
               fourth: str = "whatever", fifth: int) -> None:
        kept = {
            "a": 1,  # why
        }
        return self.given(tuple(one for one in second))
"""


def test_statements_are_filled():
    assert filled(SPREAD) == FILLED


def test_private_functions_lose_what_is_said_of_them_and_blank_lines_stay_between_methods_only(flattened):
    spread = '''class G:
    """First sentence. Second.

    More.
    """

    g = f(C)

    def _inner(self):
        """Private."""

        return math.e
'''
    close = '''class G:
    """First sentence."""
    g = f(C)

    def _inner(self):
        return math.e

'''
    assert close in flattened(("kit.high", "class G:\n    g = f(C)\n", spread))


@pytest.mark.parametrize("path", sorted(Path("kit").rglob("*.py")), ids=str)
def test_filling_changes_no_code(path):
    text = path.read_text()
    assert ast.dump(ast.parse(filled(text))) == ast.dump(ast.parse(text))
    assert max(map(len, filled(text).splitlines())) <= 120


def test_names_that_are_not_reached_do_not_clash(flattened):
    assert (
        flattened(("kit.high", "class G", "A = 3\n\n\nclass G")).partition("import")[2] == FLAT.partition("import")[2]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("kit.high", "g = f(C)", "g = f(A)"), ("kit.high", "class G", "A = 3\n\n\nclass G")], "A is given by kit/"),
        ([("kit.high", "import math", "import cmath as math")], "math is given by "),
        ([("kit.low", "+ A", "+ len(x)\n\n\ndef len(x): ..."), ("kit.high", "G.g", "len(G.g)")], "len is given by "),
        ([("kit.high", "C, f", "C, f as h"), ("kit.high", "f(C)", "h(C)")], "h is another name for f: use one name"),
        ([("kit.high", "C, f", "C, f, D"), ("kit.high", "f(C)", "f(D)")], "kit/low.py: defines no D"),
        ([("kit.high", "import C", "import *\nfrom kit.low import C")], "line 4: write out what is imported"),
        ([("kit.high", "import math", "import kit.low")], "write from kit.low import NAME"),
        (
            [("kit.high", "    return", "    from kit.low import A\n    return")],
            "line 12: an import from the kit inside",
        ),
    ],
)
def test_what_cannot_be_one_module_is_refused(changes, message, flattened):
    with pytest.raises(InputError, match=re.escape(message)):
        flattened(*changes)
