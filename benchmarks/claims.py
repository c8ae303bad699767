"""Tables of README.md, docs/scale.md and docs/leaderboard.md that say what was measured: python -m benchmarks.claims
makes them from the records."""

import json
import re
from functools import partial
from pathlib import Path

from benchmarks.leaderboard_table import HEADER, table_of

ROOT = Path(__file__).resolve().parents[1]
HEAD = "| claim | measured | record |\n|---|---|---|\n"
GROWTH = "| what is made | models | pools, GB | hours on 1 GPU | on 8 | on 64 |\n|---|---:|---:|---:|---:|---:|\n"


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


# Page, how the table begins there, what makes it.
TABLES = (
    ("README.md", HEAD, table),
    ("docs/scale.md", GROWTH, growth_table),
    *(("docs/leaderboard.md", board_head(name), partial(board_table, name)) for name in ("competition", "cifar10")),
)


if __name__ == "__main__":
    for page, head, made in TABLES:
        text = (ROOT / page).read_text()
        (ROOT / page).write_text(re.sub(re.escape(head) + r"(?:\|.*\n)*", lambda _, made=made: made(), text))
