"""What the score of saved pools is worth, and how long finding that out takes.

python -m benchmarks.bench_assess NAME POOL [POOL ...]

POOL: folders of unlearned pools of one setting, as `python -m local_eval run` leaves them. Writes results/NAME.json.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.record import record
from local_eval.assess import Assessment, agreement, assess, measures
from local_eval.evaluate import evaluate, read_samples
from local_eval.pool import ModelPool
from local_eval.setting import reopen


def main(argv: list[str]) -> None:
    if len(argv) < 3:
        sys.exit(__doc__)
    pools = [ModelPool.open(Path(folder)) for folder in argv[2:]]
    workspace = reopen(pools[0].folder.resolve().parent)
    samples = read_samples(workspace, {pool.identity["method"]: pool for pool in pools}, min(map(len, pools)))
    seconds = {}
    start = time.perf_counter()
    rows = evaluate(samples)
    seconds["table"] = time.perf_counter() - start
    assessments, above = assess(samples, progress=True)
    seconds["intervals, null, prediction, diagnosis"] = time.perf_counter() - start - sum(seconds.values())
    measured = measures(samples)
    seconds["other measures"] = time.perf_counter() - start - sum(seconds.values())
    ranks = agreement({row.name: row.score for row in rows if row.name in samples.methods}, measured)
    facts = {key: value for key, value in asdict(workspace.setting).items() if key != "source"}
    results = {
        "setting": facts,
        "n_models": samples.n_models,
        "seconds": {phase: round(s, 2) for phase, s in seconds.items()},
        "methods": [short(assessment) for assessment in assessments],
        "probability_above": {f"{a} above {b}": round(p, 4) for (a, b), p in above.items()},
        "measures": {n: {k: round(v, 5) for k, v in values.items()} for n, values in measured.items()},
        "spearman_with_score": ranks and dict(zip(ranks.names, ranks.spearman[0].round(3).tolist(), strict=True)),
    }
    path = record(argv[1], results, [argv[0], argv[1], *("POOL" for _ in pools)])
    print(json.dumps(results, indent=1), path, sep="\n")


def short(assessment: Assessment) -> dict:
    """Values and ends of the intervals, and the sentence."""
    forms = {
        form: {
            name: [round(x, 5) for x in (interval.value, interval.low, interval.high)] if interval else None
            for name, interval in vars(values).items()
        }
        for form, values in assessment.forms.items()
    }
    return {
        "name": assessment.name,
        **forms,
        "mean_lower_bound_of_epsilon": round(float(assessment.lower_bounds.epsilon.mean()), 3),
        "sentence": assessment.sentence,
    }


if __name__ == "__main__":
    main(sys.argv)
