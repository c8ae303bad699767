"""The table of README.md that says what was measured: python -m benchmarks.claims writes it from the records."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = "| claim | measured | record |\n|---|---|---|\n"


def results(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["results"]


def _intervals(found: dict) -> str:
    cases = found["quality"]
    low, high = (f(case["coverage"] for case in cases) for f in (min, max))
    return f"{low:.1%} to {high:.1%} of {cases[0]['repetitions']} repetitions, {len(cases)} cases"


def _budget(found: dict) -> str:
    slowed = sum(row["slowed"] != "no" for row in found["rows"])
    return f"{found['complete_and_verified']} of {found['runs']} runs, {slowed} slowed in the middle"


def _score(found: dict) -> str:
    return "; ".join(
        f"{row['n_examples']:,} examples in {row['s']:.0f} s, {row['peak_mib']:,.0f} MiB"
        for row in found["score"]
        if not row["brief"]
    )


CLAIMS = (
    ("the 95% interval for F covers the truth", "intervals", _intervals),
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
    ("512 + 512 models scored, intervals and all, on two cores", "score", _score),
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


def score_table() -> str:
    rows = (
        f"| {row['n_examples']:,} | {'plain score' if row['brief'] else 'intervals and all'} | {row['s']:.1f} s "
        f"| {row['cpu_s']:.1f} s | {row['times_less_cpu']:.1f} | {row['peak_mib']:,.0f} MiB |\n"
        for row in results("score")["score"]
    )
    return SCORE_HEAD + "".join(rows)


def growth_table() -> str:
    rows = (
        f"| {name} | {n_gpus} | {part['retrain']:.2f} h | {part['unlearn']:.2f} h | {part['score']:.2f} h "
        f"| {part['all_h']:.2f} h | {part['bottleneck']} | {plan['pools_gb']:.1f} GB |\n"
        for name, plan in results("growth")["plans"].items()
        for n_gpus in (1, 8, 64)
        for part in [plan[f"{n_gpus} GPUs"]]
    )
    return GROWTH_HEAD + "".join(rows)


SCORE_HEAD = """| forget examples | what | took | of cores | times less than before | peak |
|---:|---|---:|---:|---:|---:|
"""
GROWTH_HEAD = """| what | GPUs | retrain | unlearn | score | all | the longest | pools |
|---|---:|---:|---:|---:|---:|---|---:|
"""
TABLES = (
    ("README.md", HEAD, table),
    ("docs/scale.md", SCORE_HEAD, score_table),
    ("docs/scale.md", GROWTH_HEAD, growth_table),
)

if __name__ == "__main__":
    for name, head, made in TABLES:
        page = ROOT / name
        page.write_text(re.sub(re.escape(head) + r"(?:\|.*\n)*", lambda _, made=made: made(), page.read_text()))
