"""calibrated_restart beside the competition's winner and fine-tuning, where it was tuned and where it was not.

python -m benchmarks.bench_own_method competition --data-root FOLDER    where its hyper-parameters were chosen
python -m benchmarks.bench_own_method "another forget set" --data-root FOLDER    another original, too
python -m benchmarks.bench_own_method "clean labels" --data-root FOLDER    no labels flipped
python -m benchmarks.bench_own_method cifar10 --source image-folder:PATH
python -m benchmarks.bench_own_method "one class" --source image-folder:PATH

Models are kept below --work-dir. Writes results/own_method.json, an entry a setting.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.record import record_entry
from benchmarks.validity.points import known_points
from benchmarks.validity.replay import measured
from kit.methods import get_method
from local_eval.assess import FEWEST, accuracies_of, assess
from local_eval.audit import probability_above, score_interval
from local_eval.audit.expected import resample_expected
from local_eval.audit.null import null_quality
from local_eval.evaluate import Sample, Samples, read_samples
from local_eval.metric import grid_epsilon
from local_eval.retrained import fill_retrained
from local_eval.setting import LIKE, Setting, Workspace, open_workspace
from local_eval.unlearned import fill_points

OWN = "calibrated_restart"
CIFAR10 = {"source": "cifar10", "n_train": 10_000, "architecture": "smallconv"}
SETTINGS = {
    "competition": LIKE["competition"],
    "another forget set": LIKE["competition"] | {"data_seed": 1, "train_seed": 1},
    "clean labels": LIKE["competition-clean"],
    "cifar10": CIFAR10 | {"forget": "random:500"},
    "one class": CIFAR10 | {"forget": "class:0"},
}
METHODS = {OWN: [], "fanchuan": [], "finetune": []}
ABLATIONS = {"neither scale nor noise": "match=false", "no noise": "spread=0", "no teacher": "teaching=0"}


def parser_of(about: str) -> argparse.ArgumentParser:
    """With one of SETTINGS and where its data and models are, which `workspace_of` opens."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--source", help="in place of cifar10, where it comes from another place: image-folder:PATH")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--work-dir", type=Path, default=Path("runs"))
    parser.add_argument("--n-models", type=int, default=8)
    return parser


def workspace_of(options: argparse.Namespace) -> Workspace:
    fields = SETTINGS[options.setting] | ({"source": options.source} if options.source else {})
    return open_workspace(Setting(**fields), options.work_dir, data_root=options.data_root)


def main(argv: list[str]) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--ablations", action="store_true", help="parts of the method left out, too")
    parser.add_argument("--rivals", action="store_true", help=f"beside the prize winners, too, {FEWEST} models each")
    options = parser.parse_args(argv[1:])
    workspace = workspace_of(options)
    methods = {name: get_method(name, settings) for name, settings in METHODS.items()}
    if options.ablations:
        methods |= {name: get_method(OWN, [setting]) for name, setting in ABLATIONS.items()}
    fill_retrained(workspace, options.n_models)
    pools = fill_points(workspace, list(methods.values()), options.n_models)
    samples = read_samples(workspace, dict(zip(methods, pools, strict=True)), options.n_models)
    retrained = samples.retrained
    found = {
        "setting": asdict(workspace.setting) | ({"source": "cifar10 as image folder"} if options.source else {}),
        "n_models": options.n_models,
        "n_forget": len(workspace.splits.forget),
        "null_at_512": float(null_quality(retrained.confidence, 512).quality.value),
        "retrained": {part: float(values.mean()) for part, values in retrained.accuracy.items()},
        "seconds_of_retraining": float(retrained.seconds.mean()),
        "seconds_of_the_original": float(samples.original.seconds.mean()),
        "methods": measured(samples),
    }
    for name, sample in samples.methods.items():
        found["methods"][name] |= {part: float(values.mean()) for part, values in sample.accuracy.items()}
        found["methods"][name]["epsilon by memorisation"] = by_memorisation(samples, sample)
    if options.n_models >= FEWEST:
        intervals, certainty = compared(samples)
        found |= certainty
        for name, interval in intervals.items():
            found["methods"][name]["interval of the expected"] = interval
    if options.rivals:
        rivals = {OWN: methods[OWN]} | {point.name: point.method for point in known_points() if point.kind == "method"}
        pools = fill_points(workspace, list(rivals.values()), FEWEST)
        others = read_samples(workspace, dict(zip(rivals, pools, strict=True)), FEWEST)
        found["rivals"] = {"n_models": FEWEST} | compared(others)[1]
        print(f"rivals: {found['rivals']}")
    for name, row in found["methods"].items():
        expected = f"{row['expected at 512']:.4f} {interval_of(row)}of {found['null_at_512']:.4f}"
        print(
            f"{name:24s} expected at 512 {expected}  score {row['score']:.4f}  shift {row['shift']:.2f}  "
            f"spread {row['spread']:.2f}  retain {row['retain']:.2%}  test {row['test']:.2%}  "
            f"{row['seconds']:.0f} s of {found['seconds_of_retraining']:.0f}"
        )
    print(f"above: {found.get('above')}, of what is expected at 512: {found.get('above, expected at 512')}")
    print(record_entry("own_method", options.setting, found, argv, options.source))


def compared(samples: Samples) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
    """The interval of what is expected of each method at 512 models; and the probability that ours stands above each
    other one, by the score with these models and by what is expected at 512."""
    by_score, retrained = assess(samples)[1], samples.retrained
    accuracies = {name: accuracies_of(sample, retrained) for name, sample in samples.methods.items()}
    parts = {
        name: resample_expected(sample.confidence, retrained.confidence, groups=samples.groups)
        for name, sample in samples.methods.items()
    }
    intervals = {name: score_interval(parts[name], accuracies[name]) for name in parts}
    others = [name for name in parts if name != OWN]
    return {name: [interval.low, interval.high] for name, interval in intervals.items()}, {
        "above": {name: by_score[OWN, name] if (OWN, name) in by_score else 1 - by_score[name, OWN] for name in others},
        "above, expected at 512": {
            name: probability_above(parts[OWN], parts[name], accuracies[OWN], accuracies[name]) for name in others
        },
    }


def by_memorisation(samples: Samples, sample: Sample, n_groups: int = 10) -> list[float]:
    """Mean epsilon of tenths of the forget set, the least memorised first: by how much surer of an example's label the
    original is, in log-odds, than retrained models are (Feldman 2020, equation 1, with one model trained on it)."""
    memorised = samples.original.confidence.mean(axis=0) - samples.retrained.confidence.mean(axis=0)
    epsilon = grid_epsilon(sample.confidence, samples.retrained.confidence).epsilon
    return [float(epsilon[rows].mean()) for rows in np.array_split(np.argsort(memorised), n_groups)]


def interval_of(row: Mapping[str, float]) -> str:
    low, high = row.get("interval of the expected", (None, None))
    return "" if low is None else f"[{low:.4f}, {high:.4f}] "


if __name__ == "__main__":
    main(sys.argv)
