"""Does `tune finetune` find as good a setting as the participants' own sweep by hand?

python -m benchmarks.bench_tune cifar10 --source image-folder:PATH
python -m benchmarks.bench_tune competition --data-root FOLDER

The sweep: the points of benchmarks/validity/kaggle_scores.csv, learning rate, batch and epochs of the starter's
fine-tuning, with as many models as the search's last trials. Both are judged by what is expected at 512 models,
accuracies included. The best of many is partly luck, so the best of each is measured once more with other unlearning
seeds. Models are kept below --work-dir. Writes results/tune.json, an entry a setting.
"""

import sys

from benchmarks.bench_own_method import parser_of, workspace_of
from benchmarks.record import record_entry
from benchmarks.validity.points import known_points
from kit.budget import parse_duration
from kit.methods import get_method, with_settings
from local_eval.evaluate import sample_of
from local_eval.retrained import fill_retrained, retrained_pool
from local_eval.tune import Search, best_of, measure, ranges_of, rungs_of, search
from local_eval.unlearned import broken_reason, fill_points


def main(argv: list[str]) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--limit", default="10m", help="of the search (10m)")
    options = parser.parse_args(argv[1:])
    workspace, n_models = workspace_of(options), options.n_models
    fill_retrained(workspace, n_models)
    retrained = sample_of(retrained_pool(workspace), n_models, workspace)

    def values(methods, seed=0):
        pools = fill_points(workspace, methods, n_models, seed=seed)
        return [
            None if broken_reason(pool) else measure(sample_of(pool, n_models, workspace), retrained)["value"]
            for pool in pools
        ]

    by_hand = {point.name: point.method for point in known_points() if point.kind == "fine-tuning"}
    swept = dict(zip(by_hand, values(list(by_hand.values())), strict=True))
    best_by_hand = max(swept, key=lambda name: swept[name] or 0.0)

    method = get_method("finetune")
    plan = Search(method, ranges_of(method), rungs_of(n_models))
    found = search(workspace, plan, limit_s=parse_duration(options.limit))
    best = best_of(found)
    again = values([by_hand[best_by_hand], with_settings(method, best.settings)], seed=1)
    results = {
        "n_models": n_models,
        "by hand": swept,
        "best by hand": {"lr, batch, epochs": best_by_hand, "expected": swept[best_by_hand], "again": again[0]},
        "tune": {
            "settings": list(best.settings),
            "expected": best.value,
            "again": again[1],
            "n_trials": len({result.trial for result in found}),
            "as it stands": [result.value for result in found if result.trial == 0][-1],
            "seconds": sum(result.took_s for result in found),
        },
    }
    for name, value in sorted(swept.items(), key=lambda pair: -(pair[1] or 0.0)):
        print(f"{name:20s} {'no model' if value is None else format(value, '.4f')}")
    print(f"best by hand {results['best by hand']}\ntune         {results['tune']}")
    print(record_entry("tune", options.setting, results, argv, options.source))


if __name__ == "__main__":
    main(sys.argv)
