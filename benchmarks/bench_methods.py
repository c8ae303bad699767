"""Every method on CIFAR-10 beside doing nothing and retraining: scores with intervals, accuracies, distances, seconds.

python -m benchmarks.bench_methods random SOURCE    500 of 10,000 images forgotten, 64 models a method
python -m benchmarks.bench_methods class SOURCE     one class forgotten, 8 models a method
python -m benchmarks.bench_methods random SOURCE --only finetune,ssd    some of them, nothing recorded

SOURCE: as for local_eval, such as cifar10. Each method has the hyper-parameters that benchmarks.bench_sweeps found best
and recorded. Writes results/methods_random.json or results/methods_class.json. --work-dir keeps models between runs.
"""

import argparse
import sys
import time

from benchmarks.bench_sweeps import FORGET, cifar_options, open_cifar, recorded
from benchmarks.record import record, rounded
from kit.methods import get_method
from local_eval.assess import assess
from local_eval.devices import begin_processes, devices_of
from local_eval.distances import distances
from local_eval.evaluate import DO_NOTHING, NULL, evaluate, read_samples
from local_eval.report.assessment import interval_text
from local_eval.report.table import aligned
from local_eval.retrained import fill_retrained
from local_eval.unlearned import fill_unlearned

N_MODELS = {"random": 64, "class": 8}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=FORGET)
    cifar_options(parser)
    parser.add_argument("--only", help="names of methods, separated by commas; nothing is recorded")
    options = parser.parse_args(argv[1:])
    kind, n_models = options.kind, N_MODELS[options.kind]
    chosen = {name: found["best"] for name, found in recorded(kind).items()}
    if options.only:
        chosen = {name: chosen[name] for name in options.only.split(",")}
    start = time.perf_counter()
    begin_processes(devices_of())
    workspace = open_cifar(kind, options)
    fill_retrained(workspace, n_models)
    pools = {name: fill_unlearned(workspace, get_method(name, settings), n_models) for name, settings in chosen.items()}
    results = {
        "n_models": n_models,
        "n_forget": len(workspace.splits.forget),
        "n_retain": len(workspace.splits.retain),
        "settings": {name: pool.identity["hyper"] for name, pool in pools.items()},
        **measured(read_samples(workspace, pools, n_models)),
        "seconds": round(time.perf_counter() - start),
    }
    print("\n".join(aligned(results.pop("table"))))
    if not options.only:
        print(record(f"methods_{kind}", results, [argv[0], kind, "SOURCE"]))


def measured(samples) -> dict:
    """One row a method, and the probabilities that one scores above another."""
    rows = {row.name: row for row in evaluate(samples)}
    assessments, above = assess(samples, progress=True)
    assessed = {assessment.name: assessment for assessment in assessments}
    distance = distances(samples)
    found, table = [], [("method", "score", "share", "retain", "forget", "test", "act. dist.", "JS", "seconds", "time")]
    for name, row in rows.items():
        form = assessed[name].forms["grid"] if name in assessed else None
        facts = {
            "name": name,
            "score": [row.score, form.score.low, form.score.high] if form else [row.score],
            "share_of_null": form.share.value if form and form.share else None,
            "predicted_at_512": form.predicted.value if form and form.predicted else None,
            "exact_score": assessed[name].forms["exact"].score.value if form else None,
            "forgetting_quality": row.forgetting_quality,
            "mean_epsilon": row.mean_epsilon,
            "retain_accuracy": row.retain_accuracy,
            "forget_accuracy": row.forget_accuracy,
            "test_accuracy": row.test_accuracy,
            "forgotten_test_accuracy": row.forgotten_test_accuracy,
            "activation_distance": distance[name].activation,
            "js": distance[name].js,
            "kl": distance[name].kl,
            "similarity_ratio": distance[name].similarity,
            "seconds": row.seconds,
            "time_ratio": row.time_ratio,
            "sentence": assessed[name].sentence if form else None,
        }
        found.append({key: rounded(value) for key, value in facts.items()})
        table.append(
            (
                name.split(" (")[0],
                interval_text(form.score) if form else f"{row.score:.4f}",
                f"{form.share.value:.1%}" if form and form.share else "-",
                *(f"{value:.1%}" for value in (row.retain_accuracy, row.forget_accuracy, row.test_accuracy)),
                f"{distance[name].activation:.3f}",
                f"{distance[name].js:.4f}",
                f"{row.seconds:.2f}",
                f"{row.time_ratio:.0%}" if row.time_ratio and name not in (DO_NOTHING, NULL) else "-",
            )
        )
    return {
        "rows": found,
        "probability_above": {f"{a} above {b}": round(p, 4) for (a, b), p in above.items()},
        "table": table,
    }


if __name__ == "__main__":
    main(sys.argv)
