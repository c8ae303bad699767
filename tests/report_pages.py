"""What tests of pages ask of them, and how they break a pool."""

from html.parser import HTMLParser

import numpy as np

from local_eval.report.comparison import SECTIONS as OF_COMPARISON
from local_eval.report.page import SECTIONS as OF_EVALUATION


class Elements(HTMLParser):
    """Every element with its attributes, and all text outside of styles and pictures."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text, self._inside = [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag in ("style", "svg"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data):
        if not self._inside:
            self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def read(path):
    return Elements(path.read_text(encoding="utf-8"))


def sections_of(name):
    return [key for key, _ in (OF_COMPARISON if name == "comparison" else OF_EVALUATION)]


def break_model(pool, index):
    path = pool / f"model_{index:05d}.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["forget"] = np.full_like(arrays["forget"], np.nan)
    np.savez(path, **arrays)
