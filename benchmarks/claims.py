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
    """The table as README.md has it."""
    golden = "| equal to the released scoring code | all golden files, epsilon within 1e-6 | "
    golden += "`python -m pytest tests/test_metric_golden.py` |\n"
    rows = (
        f"| {claim} | {told(results(name))} | [{name}](benchmarks/results/{name}.json) |\n"
        for claim, name, told in CLAIMS
    )
    return HEAD + golden + "".join(rows)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    text = re.sub(re.escape(HEAD) + r"(?:\|.*\n)*", lambda _: table(), readme.read_text())
    readme.write_text(text)
