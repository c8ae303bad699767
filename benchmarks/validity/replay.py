"""Does the local score rank submissions as Kaggle did? Known ones run again on a stand-in, beside their Kaggle scores.

python -m benchmarks.validity.replay competition --data-root FOLDER    what `--like competition` stands for; hours
python -m benchmarks.validity.replay "clean labels" --few              one thing changed, for the ablation
python -m benchmarks.validity.replay cifar10 --data-root FOLDER        the usual stand-in, for contrast
python -m benchmarks.validity.replay together                          all settings of `--like` at once, from the record
python -m benchmarks.validity.replay unseen --data-root FOLDER         forecasts of submissions that the record lacks

Models are kept below --work-dir: what is interrupted goes on, and more --n-models add to what is there. Writes
results/validity.json, an entry a stand-in, and results/validity_NAME.png.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from benchmarks.record import RESULTS, record_entry
from benchmarks.validity.points import FEW, UNSEEN, Known, known_points
from kit.ledger import write_atomically
from local_eval.assess import FEWEST, measures
from local_eval.audit.diagnosis import diagnose
from local_eval.audit.null import null_quality
from local_eval.distances import distances
from local_eval.evaluate import DO_NOTHING, Samples, evaluate, read_samples
from local_eval.published import use_published
from local_eval.retrained import fill_retrained, fill_settings, original_pool, retrained_pool
from local_eval.setting import LIKE, Setting, Workspace, open_workspace
from local_eval.unlearned import broken_reason, fill_points, unlearned_pool
from local_eval.validity import (
    MEASURE,
    RECORD,
    expected_score,
    geometric_mean,
    points_together,
    rank_correlation,
    validation_together,
)

# Each changes one thing of the first.
STAND_INS = {
    "competition": {},
    "narrow recipe": {"recipe": "competition-narrow"},
    "clean labels": {"source": "gtsrb:super"},
    "6% flipped": {"source": "gtsrb:super:noise=0.06"},
    "one pass an epoch": {"passes": 1},
    "single examples": {"forget": "random:0.02"},
    "sgd recipe": {"recipe": "sgd"},
    "fast recipe": {"recipe": "fast"},
    "unweighted loss": {"recipe": "competition-unweighted"},
    "smallconv": {"architecture": "smallconv"},
    "ten classes": {"source": "gtsrb:ten:noise=0.04"},
}
CIFAR10 = {"source": "cifar10", "n_train": 10_000, "forget": "random:500"}  # as the README's tables were made
KINDS = ("fine-tuning", "method")
STARTER = "0.001, 64, 1"
PUBLIC_MIA = "starting kit's MIA"
TOGETHER, NEW = "together", "unseen"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stand_in", choices=[*STAND_INS, "cifar10", TOGETHER, NEW])
    parser.add_argument("--source", help="of cifar10, where it comes from another place: image-folder:PATH")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--work-dir", type=Path, default=Path("runs"))
    parser.add_argument("--n-models", type=int, default=24)
    parser.add_argument("--n-retrained", type=int, help="where they are more (as many)")
    parser.add_argument("--kept", action="store_true", help="only submissions whose models are there already")
    parser.add_argument("--few", action="store_true", help="eight of the sweep's points, for the ablation")
    parser.add_argument("--methods", action="store_true", help="the prize winners and others beside the starter alone")
    options = parser.parse_args(argv[1:])
    if options.stand_in == TOGETHER:
        if len(argv) > 2:
            parser.error(f"{TOGETHER}: is made from the record alone: leave {argv[2]} out")
        write(TOGETHER, together(), argv)
        return
    if options.stand_in == NEW:
        found = unseen(options.work_dir, options.data_root, options.n_models)
        print(*lines_of_forecasts(found), record_entry("validity", NEW, found, argv), sep="\n")
        return
    fields = CIFAR10 if options.stand_in == "cifar10" else LIKE["competition"] | STAND_INS[options.stand_in]
    fields = fields | ({"source": options.source} if options.source else {})
    workspace = open_workspace(Setting(**fields), options.work_dir, data_root=options.data_root)
    points = [point for point in known_points() if not options.few or point.name in FEW]
    if options.methods:
        points = [point for point in points if point.kind == "method" or point.name == STARTER]
    if options.kept:
        points = [point for point in points if len(unlearned_pool(workspace, point.method)) >= options.n_models]
    n_retrained = max(options.n_models, options.n_retrained or 0)
    if STAND_INS.get(options.stand_in, {}).keys() == {"passes"}:
        base = open_workspace(Setting(**LIKE["competition"]), options.work_dir, data_root=options.data_root)
        take_models(base, workspace, n_retrained)
    fill_retrained(workspace, n_retrained)
    found = replay(workspace, points, options.n_models)
    found["setting"] = found["setting"] | ({"source": "cifar10 as image folder"} if options.source else {})
    write(options.stand_in + ", methods" * options.methods, found, argv, options.source)


def write(name: str, found: dict, argv: Sequence[str], source: str | None = None) -> None:
    for line in lines_of(found):
        print(line)
    print(record_entry("validity", name, found, argv, source))
    print(plot(found, RESULTS / f"validity_{name.replace(', ', '_').replace(' ', '_')}.png"))


def together(record: Path = RECORD) -> dict:
    """The points that all settings of --like have, by the geometric means of their scores there."""
    points = points_together([Setting(**setting) for setting in LIKE.values()], record)
    return {"stand_ins": [*LIKE], "points": points, **correlations_of(points)}


def unseen(work_dir: Path, data_root: Path | None, n_models: int) -> dict:
    """What the forecast says of submissions that had no part in it, and what they got."""
    settings, points = [Setting(**setting) for setting in LIKE.values()], known_points(UNSEEN, sweep=False)
    workspaces = [open_workspace(setting, work_dir, data_root=data_root) for setting in settings]
    relation, local = validation_together(settings), {point.name: {} for point in points}
    fill_settings(workspaces, n_models)
    for name, workspace in zip(LIKE, workspaces, strict=True):
        for point, row in replay(workspace, points, n_models)["points"].items():
            local[point][name] = row[MEASURE]
    found = {}
    for point in (point for point in points if len(local[point.name]) == len(LIKE)):  # none where it broke a model
        expected = geometric_mean([*local[point.name].values()])
        forecast = asdict(relation.forecast(expected))
        facts = {"kaggle": point.kaggle, "expected": local[point.name], "together": expected, "forecast": forecast}
        found[point.name] = facts | {"inside": forecast["low"] <= point.kaggle <= forecast["high"]}
    pairs = ((point["kaggle"], point["together"]) for point in found.values())
    kaggle, local = np.array([*zip(relation.kaggle, relation.local, strict=True), *pairs]).T
    spearman, interval = rank_correlation(kaggle, local)
    with_these = {"spearman": spearman, "interval": list(interval), "n_points": len(local)}
    return {"n_models": n_models, "n_known": relation.n_points, "points": found, "with these": with_these}


def lines_of_forecasts(found: Mapping) -> list[str]:
    return [
        "{}: {:.4f} [{:.4f}, {:.4f}] on Kaggle; it got {:.4f}".format(
            name, *(point["forecast"][key] for key in ("value", "low", "high")), point["kaggle"]
        )
        for name, point in found["points"].items()
    ]


def take_models(base: Workspace, workspace: Workspace, n_models: int) -> None:
    """The models of `base`, the published ones among them, for a setting that differs in what a method gets."""
    use_published(base)
    fill_retrained(base, n_models)
    if not workspace.original_path.exists():
        write_atomically(workspace.original_path, base.original_path.read_bytes())
    for pool_of, n in ((original_pool, 1), (retrained_pool, n_models)):
        for index in pool_of(workspace).missing(n):
            read = pool_of(base).read(index + 1)
            logits = {part: values[index] for part, values in read.items() if part != "seconds"}
            pool_of(workspace).add(index, logits, float(read["seconds"][index]), taken_from=base.name)


def replay(workspace: Workspace, points: Sequence[Known], n_models: int) -> dict:
    """Fill the pools and measure every point; the correlation of each measure with Kaggle's scores."""
    pools = fill_points(workspace, [point.method for point in points], n_models)
    whole = {point.name: pool for point, pool in zip(points, pools, strict=True) if broken_reason(pool) is None}
    samples = read_samples(workspace, whole, n_models)
    rows = measured(samples)
    known = {point.name: point for point in points if point.name in whole}
    found = {name: {"kaggle": known[name].kaggle, "kind": known[name].kind, **rows[name]} for name in known}
    retrained = {part: float(values.mean()) for part, values in samples.retrained.accuracy.items()}
    original = {part: float(values.mean()) for part, values in samples.original.accuracy.items()}
    spread = samples.retrained.confidence.std(axis=0, ddof=1)
    facts = {
        "setting": asdict(workspace.setting),
        "n_models": n_models,
        "n_forget": len(workspace.splits.forget),
        "n_train": len(workspace.splits.train),
        "original": original,
        "retrained": retrained,
        "spread_of_retrained": float(np.median(spread)),
        "null": float(null_quality(samples.retrained.confidence, n_models).quality.value),
        "points": found,
        "broken": [point.name for point in points if point.name not in whole],
    }
    return facts | correlations_of(found)


def correlations_of(found: Mapping[str, Mapping]) -> dict[str, dict | None]:
    """Over the points of each kind, and over all; None where a kind has fewer than three."""
    groups = {kind: {name: row for name, row in found.items() if row["kind"] == kind} for kind in KINDS}
    groups["all"] = found if all(groups.values()) else {}
    return {group: correlations(rows) if len(rows) > 2 else None for group, rows in groups.items()}


def measured(samples: Samples) -> dict[str, dict[str, float]]:
    """Every measure of every method, by name."""
    apart, retrained = distances(samples), samples.retrained
    rows = {row.name: row for row in evaluate(samples) if row.name != DO_NOTHING}
    others = measures(samples, apart) if samples.n_models >= FEWEST else {}
    found = {}
    for name, sample in samples.methods.items():
        row, fault = rows[name], diagnose(sample.confidence, retrained.confidence)
        ratio = row.retain_ratio * row.test_ratio
        gaps = [
            float(abs(sample.accuracy[part].mean() - retrained.accuracy[part].mean()))
            for part in ("retain", "forget", "test")
        ]
        found[name] = {
            MEASURE: expected_score(samples, row),
            "score": row.score,
            "shift": float(np.median(np.abs(fault.shift))),
            "spread": float(np.median(fault.spread_ratio)),
            "accuracy gap": float(np.mean(gaps)),
            "accuracy ratios": ratio,
            "seconds": row.seconds,
        }
        if others:
            found[name] |= {
                "U-LiRA accuracy": others[name]["U-LiRA accuracy"],
                "KLOM": others[name]["KLOM (95th percentile)"],
                PUBLIC_MIA: others[name][PUBLIC_MIA],
            }
    return found


# +1: larger is better. Of the spread, what counts is how far it is from the retrained models'.
DIRECTIONS = {
    "expected at 512": 1,
    "score": 1,
    "shift": -1,
    "spread": 0,
    "U-LiRA accuracy": -1,
    "KLOM": -1,
    PUBLIC_MIA: -1,
    "accuracy gap": -1,
}


def correlations(found: Mapping[str, Mapping[str, float]]) -> dict[str, dict]:
    """Spearman and Kendall of each measure with Kaggle's scores; 95% intervals from points drawn anew."""
    kaggle = np.array([row["kaggle"] for row in found.values()])
    result = {}
    for measure, sign in DIRECTIONS.items():
        if not all(measure in row for row in found.values()):  # too few models for it
            continue
        values = np.array([row[measure] for row in found.values()])
        values = sign * values if sign else -np.abs(np.log(np.maximum(values, 1e-6)))
        spearman, interval = rank_correlation(kaggle, values)
        result[measure] = {
            "spearman": spearman,
            "interval": list(interval),
            "kendall": float(np.nan_to_num(kendalltau(kaggle, values).statistic)),
            "n_points": len(kaggle),
        }
    return result


def lines_of(found: Mapping) -> list[str]:
    rows = sorted(found["points"].items(), key=lambda item: -item[1]["kaggle"])
    shown = [name for name in ("kaggle", MEASURE, "score", "shift", "spread") if name in rows[0][1]]
    lines = ["  ".join([f"{'point':40s}", *shown])]
    if "original" in found:
        original, retrained = found["original"], found["retrained"]
        lines.insert(
            0,
            f"original: retain {original['retain']:.2%}, test {original['test']:.2%}; retrained: forget "
            f"{retrained['forget']:.2%}, test {retrained['test']:.2%}; null {found['null']:.3f}",
        )
    for name, row in rows:
        lines.append("  ".join([f"{name:40s}", *(f"{row[key]:{len(key)}.4f}" for key in shown)]))
    for group in (*KINDS, "all"):
        for measure, row in (found[group] or {}).items():
            low, high = row["interval"]
            rank = f"Spearman {row['spearman']:.2f} [{low:.2f}, {high:.2f}], Kendall {row['kendall']:.2f}"
            lines.append(f"{group}, {row['n_points']} points: {measure}: {rank}")
    return lines


def plot(found: Mapping, path: Path) -> Path:
    """Kaggle's score against what this stand-in says, every point by its name."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    group = found["all"] or found["fine-tuning"]
    figure, panels = plt.subplots(1, 2, figsize=(12, 5.6), layout="constrained", sharey=True)
    shown = ("expected at 512", PUBLIC_MIA if PUBLIC_MIA in group else "score")
    for axes, measure in zip(panels, shown, strict=True):
        for kind, colour, mark in (("fine-tuning", "#2b6cb0", "o"), ("method", "#c05621", "s")):
            rows = {name: row for name, row in found["points"].items() if row["kind"] == kind}
            if not rows:
                continue
            label = "fine-tuning: lr, batch, epochs" if kind == "fine-tuning" else "other methods"
            x, y = ([row[key] for row in rows.values()] for key in (measure, "kaggle"))
            axes.scatter(x, y, color=colour, marker=mark, s=28, label=label, zorder=3)
            for name, row in rows.items():
                others = [other for other in rows.values() if other is not row] or [row]
                level = min(others, key=lambda other, row=row: abs(other["kaggle"] - row["kaggle"]))
                right = row[measure] >= level[measure]  # the neighbour is named on the other side
                side = {"xytext": (6, -3)} if right else {"xytext": (-6, -3), "ha": "right"}
                at = (row[measure], row["kaggle"])
                short = name.partition("(")[0]
                axes.annotate(short, at, **side, textcoords="offset points", fontsize=7.5, color="#333333")
        rank = group[measure]
        low, high = rank["interval"]
        title = {"expected at 512": "score expected at 512 models", "score": "score with these models"}.get(
            measure, f"accuracy of the {measure}"
        )
        axes.set(xlabel=title, title=f"Spearman {rank['spearman']:.2f} [{low:.2f}, {high:.2f}]")
        axes.grid(alpha=0.3)
        axes.margins(x=0.32)
    panels[0].set_ylabel("score on Kaggle")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


if __name__ == "__main__":
    main(sys.argv)
