"""Dry runs of every submission that the builder makes and of the starter: verdict, seconds, score.

python -m benchmarks.bench_dry_run [--source synthetic] [--n-models 8] [NAME ...]

The stand-in is the command's own: 400 images, 40 to be forgotten, a ResNet-18, and as many retrained ones as
checkpoints are made. Writes results/dry_run.json after each of them. With names only these programs are run, and the
others stay as they are in the record. Exit code 1 where one does not pass; `do_nothing` has to be refused.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from benchmarks.record import RESULTS, record, rounded
from local_eval.assess import FEWEST, assess
from local_eval.dry_run.judge import DryRun, dry_run
from local_eval.dry_run.program import read_program
from local_eval.dry_run.stand_in import stand_in
from local_eval.leaderboard import KITS_OWN, split_words
from local_eval.report.assessment import interval_text
from local_eval.unlearned import file_name
from notebooks.build import main as build
from notebooks.starter import write_program

FORMS = {"notebook": ".ipynb", "script": ".py"}
REFUSED = "do_nothing"  # the original N times, which no one may submit


def programs(folder: Path, names: Sequence[str] = ()) -> dict[str, Path]:
    """Name -> program: the starter and every method of the leaderboard as notebooks, the starter and fine-tuning in the
    other forms; with names only these."""
    starters = {name for name in ("starter.ipynb", "starter.py") if not names or name in names}
    found = {name: write_program(folder / name) for name in sorted(starters)}
    wanted = [(words, "notebook") for words in (REFUSED, *KITS_OWN)] + [("finetune", "script")]
    for words, form in wanted:
        name = words if form == "notebook" else f"{words}, {form}"
        if names and name not in names:
            continue
        spec, *settings = split_words(words)
        path = folder / form / f"{file_name(words)}{FORMS[form]}"
        with redirect_stdout(StringIO()):
            options = [word for setting in settings for word in ("--set", setting)]
            code = build(["--method", spec, *options, "--form", form, "--out", str(path)])
        if code:
            sys.exit(f"{name} is not built")
        found[name] = path
    return found


def facts_of(result: DryRun) -> dict:
    """What is kept of a dry run."""
    outcome, failed = result.outcome, [check for check in result.checks if not check.ok]
    facts = {
        "exit_code": result.exit_code,
        "seconds": outcome.end_s - outcome.start_s,
        "checkpoints": len(outcome.saves) or result.n_models,
        "checks_passed": f"{len(result.checks) - len(failed)} of {len(result.checks)}",
        "failed": {check.name: check.found for check in failed},
    }
    if result.projection:
        facts["hours_for_512"] = {name: seconds / 3600 for name, seconds in result.projection.on.items()}
    if result.samples is not None and result.n_models >= FEWEST:
        (assessment, *_), _ = assess(result.samples)
        form = assessment.forms["grid"]
        facts["score"], facts["null"] = interval_text(form.score), interval_text(form.null)
    return facts


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--source", default="synthetic")
    parser.add_argument("--n-models", type=int, default=8)
    parser.add_argument("--work-dir", type=Path, default=Path("runs"))
    parser.add_argument("--cache-dir", type=Path)
    options = parser.parse_args(argv[1:])
    data = stand_in(
        options.source,
        options.work_dir,
        n_models=options.n_models,
        progress=False,
        cache_dir=options.cache_dir,
    )
    path = RESULTS / "dry_run.json"
    kind, _, rest = options.source.partition(":")
    said = ["--source", f"{kind}:PATH" if rest else kind, "--n-models", str(options.n_models)]
    kept = json.loads(path.read_text())["results"] if options.names and path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name, program in programs(Path(folder), options.names).items():
            result = dry_run(read_program(program), data, options.n_models, timeout_s=3600, progress=False)
            kept[name] = facts_of(result)
            print(name, json.dumps(rounded(kept[name])), flush=True)
            record("dry_run", rounded(kept), [argv[0], *said])
    return int(any(bool(facts["exit_code"]) != (name == REFUSED) for name, facts in kept.items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
