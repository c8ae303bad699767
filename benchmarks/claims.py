"""Tables of README.md, docs/scale.md, docs/leaderboard.md and docs/validity.md that say what was measured:
python -m benchmarks.claims makes them from the records."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.leaderboard_table import HEADER, table_of
from benchmarks.validity.points import FEW
from benchmarks.validity.replay import STARTER
from benchmarks.validity.replay import together as together_on_all
from local_eval.setting import LIKE, Setting
from local_eval.validity import MEASURE, rank_correlation, recorded_points

ROOT = Path(__file__).resolve().parents[1]
HEAD = "| claim | measured | record |\n|---|---|---|\n"
BOARDS = ("competition", "cifar10", "cifar10_256")
GROWTH = "| what is made | models | pools, GB | hours on 1 GPU | on 8 | on 64 |\n|---|---:|---:|---:|---:|---:|\n"
ABLATION = "| stand-in | models | gap | starter: shift | spread | rank correlation | of the score |\n"
ABLATION += "|---|---:|---:|---:|---:|---:|---:|\n"
BOTH = "| submission | Kaggle | both | `--like competition` | `--like competition-clean` |\n|---|---:|---:|---:|---:|\n"
RANKS = "| submissions | 4% flipped | clean | both together |\n|---|---:|---:|---:|\n"
FORECASTS = "| submission | Kaggle | forecast, 80% interval | 4% flipped | clean |\n|---|---:|---:|---:|---:|\n"
PLACES = {
    "fanchuan reverse_kl=0.85": "fanchuan with `reverse_kl=0.85`",
    "fanchuan": "fanchuan (1st)",
    "forget_free": "forget_free (8th)",
    "kookmin": "kookmin (2nd)",
    "seif": "seif (3rd)",
    "sebastian": "sebastian (4th)",
    "mixture(transpose=246, pseudo_label=266)": "mixture (5th)",
    "amnesiacs": "amnesiacs (6th)",
    "0.001, 64, 1": "starter: fine-tuning, 1 epoch",
}
# Of the records in validity.json, what is changed.
CHANGES = {
    "competition": "`--like competition`",
    "narrow recipe": "four times its learning rate and weight decay",
    "one pass an epoch": "half as many steps an epoch",
    "clean labels": "no labels flipped",
    "6% flipped": "6% of all labels flipped",
    "single examples": "single images forgotten, of all classes",
    "unweighted loss": "no class weights",
    "sgd recipe": "SGD, 6 epochs",
    "fast recipe": "Muon, 3 epochs",
    "smallconv": "a plain convolutional net",
    "ten classes": "the ten largest classes as labels",
    "cifar10": "CIFAR-10, `smallconv`, Muon",
}


def results(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["results"]


def _intervals(found: dict) -> str:
    cases = {"F": found["quality"], "the score": found["score"]}
    said = []
    for of, rows in cases.items():
        low, high = (f(row["coverage"] for row in rows) for f in (min, max))
        repetitions = f" of {rows[0]['repetitions']} repetitions" if of == "F" else ""
        said.append(f"for {of} in {low:.1%} to {high:.1%}{repetitions}, {len(rows)} cases")
    return "; ".join(said)


def _budget(found: dict) -> str:
    slowed = sum(row["slowed"] != "no" for row in found["rows"])
    return f"{found['complete_and_verified']} of {found['runs']} runs, {slowed} slowed in the middle"


CLAIMS = (
    ("the 95% intervals cover the truth", "intervals", _intervals),
    ("a time limit is kept", "budget", _budget),
    (
        "killed at any moment, nothing is lost",
        "kills",
        "{kills_in_all} SIGKILLs: every archive equal byte for byte".format_map,
    ),
    (
        "the time for 64 checkpoints, projected from 3",
        "profile",
        "within 10% in {within_10_percent} of {trials} trials".format_map,
    ),
    ("hostile archives", "fuzz", "{mutants:,} mutants: no crash, nothing written elsewhere".format_map),
)


def table() -> str:
    """The table of README.md."""
    golden = "| equal to the released scoring code | all golden files, epsilon within 1e-6 | "
    golden += "`python -m pytest tests/test_metric_golden.py` |\n"
    rows = (
        f"| {claim} | {told(results(name))} | [{name}](benchmarks/results/{name}.json) |\n"
        for claim, name, told in CLAIMS
    )
    return HEAD + golden + "".join(rows)


def growth_table() -> str:
    """The table of docs/scale.md."""
    row = (
        "| {name} | {models:,} | {pools_gb:.1f} | {1 GPUs[all_h]:.3g} | {8 GPUs[all_h]:.2g} | {64 GPUs[all_h]:.2g} |\n"
    )
    plans = results("growth")["plans"]
    return GROWTH + "".join(row.format(name=name, **plan) for name, plan in plans.items())


def board_head(name: str) -> str:
    """A mark that tells the tables of docs/leaderboard.md apart, and their first line."""
    return f"<!-- {name} -->\n| {' | '.join(HEADER)} |\n"


def board_table(name: str) -> str:
    """A table of docs/leaderboard.md."""
    _, *rows = table_of(results(f"leaderboard_{name}"))
    return board_head(name) + "\n".join(rows) + "\n"


def ablation_table() -> str:
    """The table of docs/validity.md over the points that all stand-ins have."""
    found, lines = results("validity"), []
    for name, changed in CHANGES.items():
        if name not in found:
            continue
        entry = found[name]
        points = [entry["points"][point] for point in FEW]
        kaggle, *local = (np.array([p[key] for p in points]) for key in ("kaggle", "expected at 512", "score"))
        said = [
            f"{value:.2f} [{low:.2f}, {high:.2f}]"
            for value, (low, high) in (rank_correlation(kaggle, x) for x in local)
        ]
        gap = 100 * (entry["original"]["retain"] - entry["original"]["test"])
        starter = points[0]
        lines.append(
            f"| {changed} | {entry['n_models']} | {gap:.1f} | {starter['shift']:.2f} | {starter['spread']:.2f} | "
            f"{' | '.join(said)} |\n"
        )
    return ABLATION + "".join(lines)


def both_table() -> str:
    """The methods and the starter's fine-tuning on both stand-ins, best on Kaggle first: a table of README.md."""
    together = together_on_all()["points"]
    flipped, clean = (recorded_points(Setting(**setting)) for setting in LIKE.values())
    rows = sorted(together.items(), key=lambda item: -item[1]["kaggle"])
    return BOTH + "".join(
        f"| {PLACES.get(name, name)} | {point['kaggle']:.4f} | "
        f"{' | '.join(f'{found[name][MEASURE]:.4f}' for found in (together, flipped, clean))} |\n"
        for name, point in rows
        if point["kind"] == "method" or name == STARTER
    )


def ranks_table() -> str:
    """How the stand-ins rank the submissions that both have, apart and together: a table of docs/validity.md."""
    found = [recorded_points(Setting(**setting)) for setting in LIKE.values()]
    together, lines = together_on_all()["points"], []
    for told, kind in (("settings of fine-tuning", "fine-tuning"), ("methods", "method"), ("all", "")):
        names = [name for name, point in together.items() if kind in ("", point["kind"])]
        kaggle = np.array([together[name]["kaggle"] for name in names])
        columns = (np.array([points[name][MEASURE] for name in names]) for points in (*found, together))
        said = [
            f"{value:.2f} [{low:.2f}, {high:.2f}]"
            for value, (low, high) in (rank_correlation(kaggle, column) for column in columns)
        ]
        lines.append(f"| {len(names)} {told} | {' | '.join(said)} |\n")
    return RANKS + "".join(lines)


def forecasts_table() -> str:
    """What is forecast of submissions that had no part in the relation, and what they got: for docs/validity.md."""
    rows = sorted(results("validity")["unseen"]["points"].items(), key=lambda item: -item[1]["kaggle"])
    return FORECASTS + "".join(
        "| `{}` | {:.4f} | {:.4f} [{:.4f}, {:.4f}] | {:.4f} | {:.4f} |\n".format(
            name,
            point["kaggle"],
            *(point["forecast"][key] for key in ("value", "low", "high")),
            *point["expected"].values(),
        )
        for name, point in rows
    )


# Page, how the table begins there, what makes it.
TABLES = (
    ("README.md", HEAD, table),
    ("docs/scale.md", GROWTH, growth_table),
    *(("docs/leaderboard.md", board_head(name), partial(board_table, name)) for name in BOARDS),
    ("docs/validity.md", ABLATION, ablation_table),
    ("docs/validity.md", RANKS, ranks_table),
    ("docs/validity.md", FORECASTS, forecasts_table),
    ("README.md", BOTH, both_table),
)


if __name__ == "__main__":
    for page, head, made in TABLES:
        text = (ROOT / page).read_text()
        (ROOT / page).write_text(re.sub(re.escape(head) + r"(?:\|.*\n)*", lambda _, made=made: made(), text))
