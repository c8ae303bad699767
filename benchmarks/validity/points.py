"""The submissions whose Kaggle scores are known, as methods of this project."""

import csv
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from kit.methods import Method, get_method

HERE = Path(__file__).parent
SCORES = HERE / "kaggle_scores.csv"  # with the source of each
# Rows of the table that are methods here, as `--method` and `--set` take them.
METHODS = {
    "fanchuan (1st)": ("fanchuan", []),
    "fanchuan rerun": ("fanchuan", []),
    "fanchuan + 0.85 reverse KL": ("fanchuan", ["reverse_kl=0.85"]),
    "kookmin (2nd)": ("kookmin", []),
    "seif (3rd)": ("seif", []),
    "sebastian (4th)": ("sebastian", []),
    "toshi_k (5th)": ("mixture(transpose=246, pseudo_label=266)", []),
    "amnesiacs (6th)": ("amnesiacs", []),
    "random mask 50%": ("random_mask", []),
    "forget (8th)": ("forget_free", []),
    "negative gradient": ("negative_gradient", []),
}
# Rows on which nothing was decided: forecast before they were measured. The first one's settings are not told; 10% of
# the layers that are redrawn are two.
UNSEEN = {
    "random perturbation": ("random_perturbation", []),
    "forget with 1 cycle 2 epochs 10% reset": ("forget_free", ["cycles=1", "first_epochs=2", "n_layers=2"]),
    "forget with 2 cycles": ("forget_free", ["cycles=2"]),
}
# Those that tell most for their price, for the ablation.
FEW = ("0.001, 64, 1", "0.002, 64, 1", "0.0005, 32, 1", "0.001, 64, 4", "0.01, 256, 3", "0.2, 512, 3", "0.1, 64, 4")
FEW += ("0.05, 1024, 6",)


@dataclass(frozen=True)
class Known:
    """name: lr, batch, epochs of fine-tuning, or the method's; kaggle: the score there, the mean where there are
    several; kind: fine-tuning or method."""

    name: str
    kaggle: float
    kind: str
    method: Method


def known_points(table: Mapping[str, tuple[str, list[str]]] = METHODS, sweep: bool = True) -> list[Known]:
    """The points of the fine-tuning sweep, then the methods of `table`."""
    scores, methods, kinds = defaultdict(list), {}, {}
    with SCORES.open(newline="") as lines:
        for row in csv.DictReader(lines):
            if sweep and (found := re.fullmatch(r"lr ([\d.]+) batch (\d+) epochs (\d+)", row["parameters"])):
                name, kind = ", ".join(found.groups()), "fine-tuning"
                names = ("lr", "batch_size", "epochs")
                settings = [f"{key}={value}" for key, value in zip(names, found.groups(), strict=True)]
                spec = str(HERE / "starter_finetune.py")
            elif row["method"] in table:
                spec, settings = table[row["method"]]
                name, kind = " ".join([spec, *settings]), "method"
            else:
                continue
            methods[name], kinds[name] = get_method(spec, settings), kind
            scores[name].append(float(row["score"]))
    found = [Known(name, mean(values), kinds[name], methods[name]) for name, values in scores.items()]
    return sorted(found, key=lambda point: point.kind != "fine-tuning")
