"""The tables of a page: all measures, the setting, and the commands that make everything again."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kit.competition import N_CHECKPOINTS
from local_eval.audit.intervals import decimals
from local_eval.evaluate import DO_NOTHING, NULL
from local_eval.metric import BINS, MetricSpec
from local_eval.pool import ModelPool
from local_eval.recipes import GIVEN
from local_eval.report.assessment import interval_text
from local_eval.report.evidence import Evidence
from local_eval.report.write import versions
from local_eval.setting import Setting, Workspace
from local_eval.unlearned import limit_text, method_options, plans_of


def heading(workspace: Workspace, name: str, subheading: str) -> dict[str, Any]:
    """What the top and the foot of every page say."""
    setting, splits = workspace.setting, workspace.splits
    what = (
        f"{Path(setting.source).name}, {Path(setting.architecture).name}, forget {setting.forget}: "
        f"{len(splits.retain):,} retained and {len(splits.forget):,} forgotten images"
    )
    return {
        "kicker": what,
        "heading": name,
        "subheading": subheading,
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
        "setting_hash": workspace.name,
    }


def measures_table(evidence: Evidence, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Everything measured: a row a measure, a column a method; the starter, doing nothing and the null come last."""
    beside = [name for name in (evidence.starter, DO_NOTHING, NULL) if name in evidence.rows and name not in names]
    columns = [*names, *beside]
    table = [("measure", *(column.split(" (")[0] for column in columns))]

    def line(label: str, values: Mapping[str, Any], text_of: Callable[[Any], str]) -> None:
        texts = ["-" if values.get(c) is None else text_of(values[c]) for c in columns]
        table.append((label, *texts))

    rows = evidence.rows
    for label, attribute, text_of in (
        ("score", "score", decimals),
        ("forgetting quality F", "forgetting_quality", decimals),
        ("retain accuracy, times retrained", "retain_ratio", decimals),
        ("test accuracy, times retrained", "test_ratio", decimals),
        ("retain accuracy", "retain_accuracy", "{:.2%}".format),
        ("forget accuracy", "forget_accuracy", "{:.2%}".format),
        ("test accuracy", "test_accuracy", "{:.2%}".format),
        ("test accuracy, forgotten classes", "forgotten_test_accuracy", "{:.2%}".format),
        ("mean epsilon", "mean_epsilon", "{:.3f}".format),
    ):
        values = {column: getattr(rows[column], attribute) for column in columns}
        if any(value is not None for value in values.values()):
            line(label, values, text_of)
    for form_name in ("grid", "exact"):
        for label, part in (
            ("score", "score"),
            ("null", "null"),
            ("share", "share"),
            (f"at N = {N_CHECKPOINTS}", "predicted"),
        ):
            texts = [
                interval_text(getattr(evidence.assessments[c].forms[form_name], part))
                if c in evidence.assessments
                else "-"
                for c in columns
            ]
            if any(text != "-" for text in texts):
                table.append((f"{label}, {form_name} attacks", *texts))
    bounds = {
        c: float(evidence.assessments[c].lower_bounds.epsilon.mean()) for c in columns if c in evidence.assessments
    }
    if bounds:
        line("mean lower bound of epsilon", bounds, "{:.3f}".format)
    if evidence.measured:
        for measure in next(iter(evidence.measured.values())):
            line(
                measure, {c: evidence.measured[c][measure] for c in columns if c in evidence.measured}, "{:.4g}".format
            )
    else:
        for measure in ("activation", "js", "kl", "similarity"):
            line(f"{measure} distance", {c: getattr(evidence.distances[c], measure) for c in columns}, "{:.4g}".format)
    seconds = {c: rows[c].seconds or None for c in columns if c != NULL}
    line("seconds a checkpoint", seconds, "{:.2f}".format)
    return table


def setting_facts(evidence: Evidence, name: str | None = None) -> list[tuple[str, str]]:
    """The setting, seeds and versions, as pairs of texts."""
    setting = evidence.workspace.setting
    facts = {key.replace("_", " "): str(value) for key, value in asdict(setting).items() if value is not None}
    facts["epochs"] = f"{setting.n_epochs:g}"
    pool = evidence.pools.get(name) if name else None
    if pool is not None:
        facts["method"] = pool.identity.get("method", name)
        if "seed" in pool.identity:
            facts["unlearning seed"] = str(pool.identity["seed"])
        if plans := plans_of(pool):
            facts["steps a checkpoint"] = str(plans[-1]["steps"])
        if limit := limit_text(pool):
            facts["time limit"] = limit
    facts["attacks"] = evidence.attacks
    facts["constants"] = f"delta {evidence.spec.delta:g}, largest epsilon {evidence.spec.cap:g}"
    if evidence.samples is not None:
        facts["models"] = f"{evidence.samples.n_models} of each kind"
    facts["versions"] = ", ".join(f"{key} {value}" for key, value in versions().items())
    return list(facts.items())


def commands(evidence: Evidence, name: str, archive: Path | None = None) -> list[str]:
    """What makes the models and the page again: a line each."""
    folder, pool = evidence.workspace.folder, evidence.pools.get(name)
    if pool is None:
        return []
    own = score_options(evidence.spec, evidence.attacks)
    if archive is not None:
        return [shlex.join(["python", "-m", "local_eval", "report", str(archive), "--setting", str(folder), *own])]
    report = shlex.join(["python", "-m", "local_eval", "report", str(pool.folder), *own])
    options = method_words(pool)
    if not options or evidence.samples is None:
        return [report]
    options += ["--n-models", str(evidence.samples.n_models)]
    run = ["python", "-m", "local_eval", "run", *where_options(evidence.workspace), *options, *own]
    return [shlex.join(run), report]


def score_options(spec: MetricSpec, attacks: str) -> list[str]:
    """The options of the command line that give these constants; those with the default value are left out."""
    bins = next((name for name, count in BINS.items() if count is spec.bins), "code")
    given = {"attacks": (attacks, "grid"), "bins": (bins, "code")}
    given |= {name: (getattr(spec, name), getattr(MetricSpec, name)) for name in ("delta", "cap")}
    return [part for name, (value, usual) in given.items() if value != usual for part in (f"--{name}", str(value))]


def method_words(pool: ModelPool) -> list[str]:
    """The options of the command line that give a pool's method, seed and limit; none where they cannot."""
    method, settings = method_options(pool)
    if not method:
        return []
    options = ["--method", method, *(part for setting in settings for part in ("--set", setting))]
    options += ["--seed", str(pool.identity["seed"])] if pool.identity["seed"] else []
    return options + (["--limit", f"{pool.identity['limit_s']:.15g}s"] if "limit_s" in pool.identity else [])


def where_options(workspace: Workspace) -> list[str]:
    """The options of the command line that lead to this workspace: those of its setting, or its folder where its data
    or its retrained models were given and no options make them."""
    setting, folder = workspace.setting, workspace.folder
    if setting.recipe.startswith(GIVEN) or setting.source.startswith("data:"):
        return ["--setting", str(folder)]
    root = ["--work-dir", str(folder.parent)] if folder.parent != Path("runs") else []
    return [*setting_options(setting), *root]


def setting_options(setting: Setting) -> list[str]:
    """The options of the command line that give this setting; those with the default value are left out, but the
    forget policy, whose default depends on the data."""
    options = ["--source", setting.source]
    for name, value in asdict(setting).items():
        default = getattr(Setting, name, None)
        if name == "forget" or (name != "source" and value != default):
            options += [f"--{name.replace('_', '-')}", str(value)]
    return options
