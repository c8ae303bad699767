"""Hyper-parameters of every method on CIFAR-10, and the accuracies along them that the seed documents' figures show.

python -m benchmarks.bench_sweeps random SOURCE    500 of 10,000 images forgotten, 8 models a point, best by score
python -m benchmarks.bench_sweeps class SOURCE     one class forgotten, 3 models a point, best by accuracy
python -m benchmarks.bench_sweeps class SOURCE --only ssd,ssse    some of them, the others kept as recorded

SOURCE: as for local_eval, such as cifar10. Writes results/sweeps_KIND.json, whose best points are what
benchmarks.bench_methods compares, and a picture of each sweep, results/sweep_KIND_METHOD.png. A second line of a method
is a figure of a document rather than a search: it does not change the best point.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.record import RESULTS, record, rounded
from kit.methods import get_method
from local_eval.devices import begin_processes, devices_of
from local_eval.report.sweep import sweep_facts, sweep_table
from local_eval.report.sweep_plot import plot_sweep
from local_eval.report.table import aligned
from local_eval.retrained import fill_retrained
from local_eval.setting import Setting, Workspace, open_workspace
from local_eval.sweep import best, by_accuracy, by_score, fill_sweep, grid

FORGET = {"random": "random:500", "class": "class:3"}
N_TRAIN = 10_000
N_MODELS = {"random": 8, "class": 3}
N_FIGURE = 2  # models a point where only accuracies are looked at
CRITERION = {"random": by_score, "class": by_accuracy}
FAST = "bfloat16=true"
SWEEPS = {
    "random": {
        "finetune": [
            ["lr=0.003,0.01,0.03,0.1", FAST],
            ["epochs=1,3,5", "lr=0.01", FAST],  # Sapienza, figure 1
        ],
        "negative_gradient": [["lr=0.0003,0.001,0.003,0.01", FAST]],
        "l2_penalty": [["to_zero=0.001,0.01,0.1", "lr=0.03", FAST]],
        "random_perturbation": [
            ["beta=0.3,0.5,0.7", "lr=0.03,0.1", FAST],
            ["beta=0.1,0.3,0.5,0.7,0.9", "epochs=3", "lr=0.03", FAST],  # Sapienza, figures 3 and 4
        ],
        "stochastic_teacher": [["forget_lr=0.001,0.003,0.01", "lr=0.03", FAST]],
        "fisher_masking": [
            ["share=0.1,0.4", "epochs=1", "lr=0.03,0.1", FAST],
            ["share=0.001,0.01,0.1,0.4", "epochs=0,3", "lr=0.03", FAST],  # Sapienza, figure 13
        ],
        "ssd": [
            ["alpha=0.5,1", "epochs=1", "lr=0.03,0.1", "whole_set=true", FAST],
            ["alpha=0.1,0.5,1,2,5", "epochs=0,3", "lr=0.03", "whole_set=true", FAST],  # Sapienza, figure 17
        ],
        "fisher_forgetting": [["alpha=1e-7,1e-6,1e-5,1e-4,1e-3"]],
        "ssse": [["eps=0.001,0.01,0.1", "epochs=1", "lr=0.03", FAST]],
        "retrain": [["epochs=1,2", "lr=0.3", FAST]],
    },
    "class": {
        "finetune": [["lr=0.01,0.1,0.3,1.0", FAST]],
        "negative_gradient": [["lr=0.001,0.003,0.01,0.03,0.1", FAST]],
        "l2_penalty": [["to_zero=0.0001,0.001,0.01,0.1", "lr=0.01", FAST]],
        "random_perturbation": [["beta=0.1,0.3,0.5,0.7,0.9", "lr=0.03", FAST]],
        "stochastic_teacher": [
            ["forget_lr=0.001,0.01,0.1", "forget_epochs=1,5", "lr=0.01", FAST],  # Sapienza, figure 5
            ["alpha=0,0.1,0.5,1,2", "forget_lr=0.01", "lr=0.01", FAST],  # Sapienza, figure 6
        ],
        "fisher_masking": [
            ["share=0.01,0.02,0.1", "epochs=1", "lr=0.01", FAST],
            ["share=0.001,0.003,0.01,0.02,0.05", "epochs=0"],  # Sapienza, figure 9
        ],
        "ssd": [
            ["alpha=1,2,5,10,20,50", "whole_set=true"],
            ["alpha=1,2,5,10,20,50"],  # Sapienza, figure 14: no fine-tuning
        ],
        "fisher_forgetting": [["alpha=1e-7,1e-6,1e-5,1e-4", "forget_class=3"]],
        "ssse": [["eps=1e-5,3e-5,1e-4,3e-4,1e-3,1e-2"]],
        "retrain": [["epochs=1,3", "lr=0.1,0.3", FAST]],
    },
}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=FORGET)
    cifar_options(parser)
    parser.add_argument("--only", help="names of methods, separated by commas")
    options = parser.parse_args(argv[1:])
    kind = options.kind
    begin_processes(devices_of())
    workspace = open_cifar(kind, options)
    fill_retrained(workspace, N_MODELS[kind])
    results = recorded(kind)
    for method in options.only.split(",") if options.only else SWEEPS[kind]:
        start = time.perf_counter()
        found = [swept(workspace, kind, method, settings, i) for i, settings in enumerate(SWEEPS[kind][method])]
        results[method] = {
            "best": found[0]["best"],
            "sweeps": found,
            "seconds": round(time.perf_counter() - start, 1),
        }
        record(f"sweeps_{kind}", results, [argv[0], kind, "SOURCE"])


def cifar_options(parser: argparse.ArgumentParser) -> None:
    """The options that `open_cifar` reads."""
    parser.add_argument("source")
    parser.add_argument("--work-dir", type=Path, default=Path("runs"))
    parser.add_argument("--cache-dir", type=Path)


def open_cifar(kind: str, options: argparse.Namespace) -> Workspace:
    """The setting that the sweeps and the comparison of the methods share."""
    setting = Setting(options.source, FORGET[kind], n_train=N_TRAIN)
    return open_workspace(setting, options.work_dir, cache_dir=options.cache_dir)


def recorded(kind: str) -> dict:
    """Method -> best settings and sweeps, as far as they are recorded."""
    path = RESULTS / f"sweeps_{kind}.json"
    return json.loads(path.read_text())["results"] if path.exists() else {}


def swept(workspace: Workspace, kind: str, method: str, settings: list[str], number: int) -> dict:
    n_models = N_FIGURE if number else N_MODELS[kind]
    sweep = fill_sweep(workspace, grid(get_method(method), settings), n_models)
    chosen = best(sweep, CRITERION[kind])
    print("", method, *settings, *aligned(sweep_table(sweep, chosen)), sep="\n", flush=True)
    suffix = f"_{number + 1}" if number else ""
    picture = plot_sweep(sweep, chosen, RESULTS / f"sweep_{kind}_{method}{suffix}.png")
    facts = sweep_facts(sweep, chosen)
    facts["best"] = list(chosen.point.settings) if chosen else None
    for point in facts["points"]:
        del point["pool"]  # a path of this machine
    return {"settings": settings, "picture": picture.name, **rounded(facts)}


if __name__ == "__main__":
    main(sys.argv)
