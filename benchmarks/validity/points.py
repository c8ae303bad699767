"""The submissions whose Kaggle scores are known, as methods of this project."""

import csv
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from kit.methods import Method, get_method

HERE = Path(__file__).parent
SCORES = HERE / "kaggle_scores.csv"  # with the source of each
# What a row of the table is called here; a row without an entry has no method yet.
METHODS = {"negative gradient": "negative_gradient"}


@dataclass(frozen=True)
class Known:
    """name: to show; kaggle: the score that Kaggle gave (mean of the boards'); method: what is run here."""

    name: str
    kaggle: float
    method: Method


def known_points() -> list[Known]:
    """The points of the fine-tuning sweep, then the other methods."""
    scores, methods = defaultdict(list), {}
    with SCORES.open(newline="") as lines:
        for row in csv.DictReader(lines):
            found = re.fullmatch(r"lr ([\d.]+) batch (\d+) epochs (\d+)", row["parameters"])
            if found:
                lr, batch_size, epochs = found.groups()
                name = f"{lr}, {batch_size}, {epochs}"
                settings = [f"lr={lr}", f"batch_size={batch_size}", f"epochs={epochs}"]
                methods[name] = get_method(str(HERE / "starter_finetune.py"), settings)
            elif row["method"] in METHODS:
                name = row["method"]
                methods[name] = get_method(METHODS[name])
            else:
                continue
            scores[name].append(float(row["score"]))
    return [Known(name, mean(values), methods[name]) for name, values in scores.items()]
