"""A bar chart as an SVG file, written by hand: where the kit travels there is no library for it."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from kit.budget import format_duration
from kit.errors import InputError

_ROW, _LEFT, _WIDTH = 26, 430, 960


def write_bars(path: Path, title: str, bars: Sequence[tuple[str, float]], notes: Sequence[str] = ()) -> Path:
    """Write (name, seconds) as horizontal bars; indented names in a lighter colour. InputError if it cannot be."""
    path, longest = Path(path), max([seconds for _, seconds in bars], default=0.0) or 1.0
    if path.suffix != ".svg":
        raise InputError(f"{path}: the picture is an SVG: name it .svg")
    height = _ROW * (len(bars) + len(notes) + 3)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="14"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="16" y="{_ROW}" font-size="17">{escape(title)}</text>',
    ]
    for row, (name, seconds) in enumerate(bars, start=2):
        y, length = row * _ROW, (_WIDTH - _LEFT - 110) * seconds / longest
        colour = "#9ec5e8" if name.startswith(" ") else "#2b6ca3"
        indent = 40 if name.startswith(" ") else 16
        parts += [
            f'<text x="{indent}" y="{y}">{escape(name.strip())}</text>',
            f'<rect x="{_LEFT}" y="{y - 13}" width="{max(1.0, length):.1f}" height="17" fill="{colour}"/>',
            f'<text x="{_LEFT + length + 8:.1f}" y="{y}">{format_duration(seconds)}</text>',
        ]
    for row, note in enumerate(notes, start=len(bars) + 2):
        parts.append(f'<text x="16" y="{row * _ROW + 8}" font-size="12" fill="#444">{escape(note)}</text>')
    try:
        path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}): choose another folder") from error
    return path
