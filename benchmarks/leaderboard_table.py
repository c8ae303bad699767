"""The leaderboard's Markdown table, from what `python -m local_eval leaderboard --json` printed or from its record.

python -m benchmarks.leaderboard_table FILE.json                   print the table
python -m benchmarks.leaderboard_table FILE.json --record NAME     and keep its content: results/leaderboard_NAME.json

The time as a multiple of the starter's fine-tuning and whether the built submission passes the dry run come from
results/method_times.json and results/dry_run.json, where these have the method.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, record, rounded
from kit.budget import format_duration
from kit.errors import InputError
from kit.tools.cli import run
from local_eval.audit.intervals import decimals
from local_eval.report.table import markdown

HEADER = ("method", "score (95% interval)", "of the null", "at N = 512", "retain", "forget", "test", "a checkpoint")
HEADER += ("x starter", "512 in 8 h on a T4", "dry run", "Kaggle")
LOCAL = ("command", "page")  # what holds paths of the machine


def table_of(facts: Mapping[str, Any]) -> list[str]:
    """The table with what the other records say of its methods."""
    times = kept("method_times").get("methods", {})
    ratios = {name: row["ratio"] for name, row in times.items() if "ratio" in row}
    passed = {name: not row["exit_code"] for name, row in kept("dry_run").items()}
    return table(facts["rows"], ratios, passed)


def table(rows: Sequence[Mapping[str, Any]], ratios: Mapping[str, float], passed: Mapping[str, bool]) -> list[str]:
    """Lines of Markdown. ratios: method -> its time, times the starter's; passed: method -> did its dry run pass."""
    return markdown([HEADER, *(_line(row, ratios, passed) for row in rows)])


def _line(row: Mapping[str, Any], ratios: Mapping[str, float], passed: Mapping[str, bool]) -> tuple[str, ...]:
    name, is_method = row["method"], bool(row["place"] or row["fault"])
    score, low, high = (decimals(row[key]) for key in ("score", "score_low", "score_high"))
    hours = f"{row['fits_8h_on_t4']}, {row['hours_on_t4']:.1f} h" if row["hours_on_t4"] else row["fits_8h_on_t4"]
    return (
        f"`{name}`" if is_method else f"*{name}*",
        "failed" if row["fault"] else score if row["score"] is None else f"{score} [{low}, {high}]",
        _text(row["share_of_null"], ".0%"),
        decimals(row["score_at_512"]),
        *(_text(row[f"{part}_accuracy"], ".1%") for part in ("retain", "forget", "test")),
        format_duration(row["seconds"]) if row["seconds"] else "-",
        _text(ratios.get(name) if is_method else None, ".2f"),
        hours if row["place"] else "-",
        {True: "passes", False: "fails", None: "-"}[passed.get(name) if is_method else None],
        decimals(row["kaggle"]),
    )


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def facts_in(path: Path) -> dict[str, Any]:
    """What the command printed, from a file that holds it or a record of it; InputError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        facts = content.get("results", content)
        if not all(isinstance(row["method"], str) for row in facts["rows"]):
            raise ValueError("a row names no method")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: is no leaderboard ({type(error).__name__}: {error}): give what "
            "`python -m local_eval leaderboard --json` printed"
        ) from error
    return facts


def kept(name: str) -> dict[str, Any]:
    """The results of a record; empty where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["results"] if path.exists() else {}


def without_paths(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts without folders of this machine."""
    kind, colon, path = facts["setting"]["source"].partition(":")
    source = f"{kind}:PATH" if colon and "/" in path else facts["setting"]["source"]
    setting = {**facts["setting"], "source": source}
    return {**{key: value for key, value in facts.items() if key not in LOCAL}, "setting": setting}


def execute(args: argparse.Namespace) -> int:
    facts = facts_in(args.file)
    if args.record:
        command = [__file__, "FILE.json", "--record", args.record]
        print(record(f"leaderboard_{args.record}", rounded(without_paths(facts)), command), file=sys.stderr)
    print("\n".join(table_of(facts)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--record", metavar="NAME")
    parser.set_defaults(command=execute)
    return run(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
