"""Statements in few lines: what the formatter writes one a line inside brackets fills lines of 120 columns instead.

Only line breaks and commas before a closing bracket change; a statement with comments or texts of several lines stays.
"""

import io
import re
import tokenize
from collections.abc import Iterator, Sequence

LINE_LENGTH = 120
_BETWEEN = (tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT)


def filled(source: str, apart: re.Pattern[str] | None = None) -> str:
    """A source with its statements filled and without blank lines, but those between a statement and a line that
    matches `apart`."""
    lines = source.split("\n")
    for first, last in reversed(list(_statements(source))):
        blank = not lines[first].strip()
        if blank and apart and apart.match(lines[last]) and not lines[first - 1].endswith(('"""', ":")):
            continue
        lines[first:last] = [] if blank else _fill(lines[first:last])
    return "\n".join(lines)


def _statements(source: str) -> Iterator[tuple[int, int]]:
    """The lines, from and to, of statements of several lines that may be filled, and of blank lines."""
    first, movable = None, True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if first is None:
            if token.type == tokenize.NL and not token.line.strip():
                yield token.start[0] - 1, token.start[0]
            if token.type in _BETWEEN:
                continue
            first, movable = token.start[0] - 1, True
        movable &= token.type != tokenize.COMMENT and (token.type == tokenize.NEWLINE or token.start[0] == token.end[0])
        if token.type == tokenize.NEWLINE:
            if movable and token.start[0] - first > 1:
                yield first, token.start[0]
            first = None


def _fill(lines: Sequence[str]) -> Sequence[str]:
    """A statement in one line, or its outermost bracket filled, or as it is."""
    indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    if len(whole := indent + _joined(lines)) <= LINE_LENGTH:
        return [whole]
    head, *inner, tail = lines
    deeper = indent + "    "
    if head[-1] not in "([{" or tail.strip()[0] not in ")]}" or not all(line.startswith(deeper) for line in inner):
        return lines
    items = list(_items(inner, deeper))
    return min(_hanging(head, items, tail, deeper), _aligned(head, items, tail, lines), key=len)


def _hanging(head: str, items: Sequence[Sequence[str]], tail: str, indent: str) -> Sequence[str]:
    """The bracket's entries on lines of their own."""
    found = [head]
    for item in items:
        text = _joined(item)
        if len(indent + text) > LINE_LENGTH:
            found += item
        elif found[-1] is head or found[-1][-1] != "," or len(f"{found[-1]} {text}") > LINE_LENGTH:
            found.append(indent + text)
        else:
            found[-1] += f" {text}"
    closed = found[-1].removesuffix(",") + tail.strip()
    if tail[-1] == ":" or len(closed) > LINE_LENGTH:  # what follows a header stands as deep as the entries
        return [*found, tail]
    return [*found[:-1], closed]


def _aligned(head: str, items: Sequence[Sequence[str]], tail: str, otherwise: Sequence[str]) -> Sequence[str]:
    """The bracket's entries from where it opens; `otherwise` where one is too long for that."""
    texts = [_joined(item) for item in items]
    texts[-1] = texts[-1].removesuffix(",") + tail.strip()
    found = [head + texts[0]]
    for text, before in zip(texts[1:], texts, strict=False):
        if before[-1] != "," or len(f"{found[-1]} {text}") > LINE_LENGTH:
            found.append(" " * len(head) + text)
        else:
            found[-1] += f" {text}"
    return found if max(map(len, found)) <= LINE_LENGTH else otherwise


def _items(lines: Sequence[str], indent: str) -> Iterator[list[str]]:
    """Lines of one entry each."""
    item: list[str] = []
    for line in lines:
        if item and not line.startswith((indent + " ", indent + ")", indent + "]", indent + "}")):
            yield item
            item = []
        item.append(line)
    yield item


def _joined(lines: Sequence[str]) -> str:
    text = lines[0].strip()
    for line in map(str.strip, lines[1:]):
        if line[0] in ")]}":
            text = text.removesuffix(",") + line
        else:
            text += line if text[-1] in "([{" else f" {line}"
    return text
