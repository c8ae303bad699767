"""The public functions of `local_eval`, a line of Python for each step of the command line."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_stubs.splits import Splits
from kit.errors import InputError
from kit.methods import Method, method_of
from kit.tools.folder import find_method
from local_eval.archived import fill_from_files
from local_eval.arrays import ArrayScore, judge
from local_eval.devices import devices_of, hidden_cuda
from local_eval.evaluate import Row
from local_eval.given import doubts, open_given
from local_eval.metric import MetricSpec
from local_eval.pool import ModelPool
from local_eval.recipes import GIVEN
from local_eval.report.assessment import assessment_facts
from local_eval.report.comparison import write_comparison
from local_eval.report.evidence import Evidence, gather
from local_eval.report.facts import score_options
from local_eval.report.notes import notes_on
from local_eval.report.pages import COMPARISON, verdict_lines, write_pages
from local_eval.report.table import row_records
from local_eval.report.verdict import Verdict, verdict
from local_eval.report.write import facts_of
from local_eval.results import Result
from local_eval.retrained import fill_retrained
from local_eval.setting import Setting, Workspace, keep_workspace, splits_of
from local_eval.unlearned import fill_unlearned

__all__ = ["Evaluation", "Setting", "assess", "prepare", "report", "retrain", "score_arrays", "unlearn"]

Models = ModelPool | str | Path | Sequence[str | Path]


def prepare(
    setting: Setting,
    *,
    data: Splits | None = None,
    work_dir: str | Path = "runs",
    retrained: str | Path | Sequence[str | Path] | None = None,
    original: str | Path | None = None,
    devices: Sequence[str] = (),
    progress: bool = False,
    **where: Any,
) -> Workspace:
    """Load the data of a setting and open the folder of its models below `work_dir`; nothing is trained.

    data: splits of one's own, as `data_stubs.from_arrays` makes them, in place of the setting's source and policy.
    retrained, original: models that were trained elsewhere: a folder, a pattern, a zip or files of checkpoints, and one
    file; the setting's architecture is theirs. devices: a process for each entry, such as ["cuda:0"]; by default every
    GPU, or a process a core. where: data_root, cache_dir. Raises InputError for whatever does not fit.

    >>> import tempfile
    >>> setting = Setting("digits", "random:20", n_train=200, architecture="tinyconv", epochs=1)
    >>> workspace = prepare(setting, work_dir=tempfile.mkdtemp())
    >>> len(workspace.splits.forget), len(workspace.splits.retain)
    (20, 180)
    """
    if data is None:
        data = splits_of(setting, progress=progress, **where)
    elif where:
        raise InputError(f"{', '.join(where)}: says where the setting's own data lies: leave it out beside data")
    else:
        setting = replace(setting, source=f"data:{data.name}", forget="given", n_train=None)
    if retrained is None:
        if original is not None:
            raise InputError("original: belongs to retrained, the models that were trained elsewhere beside it")
        return keep_workspace(setting, data, Path(work_dir))
    start = None if original is None else Path(original)
    options = {"devices": list(devices) or devices_of(), "progress": progress}
    return open_given(setting, data, Path(work_dir), _paths(retrained), start, **options)


def retrain(
    workspace: Workspace,
    n_models: int = 64,
    *,
    devices: Sequence[str] = (),
    progress: bool = False,
    on_checkpoint: Callable[[int, float], None] | None = None,
) -> ModelPool:
    """Train what is missing of the original model and of `n_models` models without the forget set: the gold standard.

    What is there already is kept. devices: as in `prepare`. on_checkpoint: called with the number (-1: the original)
    and the seconds of each model that is trained.

    >>> import tempfile
    >>> setting = Setting("digits", "random:20", n_train=200, architecture="tinyconv", epochs=1)
    >>> workspace = prepare(setting, work_dir=tempfile.mkdtemp())
    >>> len(retrain(workspace, 2, devices=["cpu"]))
    2
    """
    _at_least_one(n_models)
    options = {"devices": devices, "progress": progress, "on_checkpoint": on_checkpoint}
    return fill_retrained(workspace, n_models, **options)


def unlearn(
    workspace: Workspace,
    method: str | Callable[..., Any] | Method,
    n_models: int = 64,
    *,
    seed: int = 0,
    limit: str | float | None = None,
    devices: Sequence[str] = (),
    progress: bool = False,
    on_checkpoint: Callable[[int, float], None] | None = None,
    **hyper: Any,
) -> ModelPool:
    """Make what is missing of `n_models` unlearned models of a method; the original is trained first if it is not yet.

    method: a name, `file.py[:function]`, or a function `(net, retain_loader, forget_loader, val_loader)` that changes
    the net or returns another; hyper: values of its hyper-parameters. limit: time for all of them, such as "90m". A
    function that is written in a notebook or script works in this process alone. devices: as in `prepare`.
    on_checkpoint: called with the number and the seconds of each model that is made.

    >>> import tempfile
    >>> setting = Setting("digits", "random:20", n_train=200, architecture="tinyconv", epochs=1)
    >>> workspace = prepare(setting, work_dir=tempfile.mkdtemp())
    >>> def nothing(net, retain_loader, forget_loader, val_loader):
    ...     return net
    >>> len(unlearn(workspace, nothing, 2, devices=["cpu"]))
    2
    """
    _at_least_one(n_models)
    with hidden_cuda(([*devices] or devices_of())[0]):
        chosen = method if isinstance(method, Method) else find_method(method) if isinstance(method, str) else None
    chosen = chosen or method_of(method)
    if unknown := [name for name in hyper if name not in chosen.defaults]:
        known = ", ".join(f"{key}={value!r}" for key, value in chosen.defaults.items()) or "none"
        raise InputError(f"{chosen.name}: has no hyper-parameter {unknown[0]!r}: it has {known}")
    chosen = replace(chosen, hyper={**chosen.hyper, **hyper})
    fixed = not chosen.file and getattr(chosen.function, "__module__", "__main__") in ("__main__", "builtins")
    devices = [*devices] or ([devices_of()[0]] if fixed else [])
    if not workspace.setting.recipe.startswith(GIVEN) or not workspace.original_path.exists():
        fill_retrained(workspace, 0, devices=devices, progress=progress)
    options = {"devices": devices, "progress": progress, "on_checkpoint": on_checkpoint}
    return fill_unlearned(workspace, chosen, n_models, seed=seed, limit=math.inf if limit is None else limit, **options)


@dataclass(frozen=True)
class Evaluation(Result):
    """What `assess` finds. rows: method -> its line of the table, with `do nothing` and the null; verdicts: method
    -> upload or not, why, and the main fault; notes: what a reader must know; evidence: all behind it."""

    rows: Mapping[str, Row]
    verdicts: Mapping[str, Verdict]
    notes: Sequence[str]
    evidence: Evidence = field(repr=False)

    def records(self) -> list[dict[str, Any]]:
        """A row a method: the numbers of the table, and the score's 95% interval where there are models enough."""
        return row_records(list(self.rows.values()), self.evidence.assessments, self.evidence.attacks)

    def sentences(self) -> list[str]:
        return [*verdict_lines(self.verdicts), *self.notes]

    def facts(self) -> dict[str, Any]:
        e = self.evidence
        own = {"attacks": e.attacks, "score_options": score_options(e.spec, e.attacks)}
        facts = facts_of(e.workspace, list(self.rows.values()), e.pools, e.distances, **own)
        facts |= assessment_facts(list(e.assessments.values()), e.above, e.measured, e.agreement)
        verdicts = {name: asdict(found) for name, found in self.verdicts.items()}
        return facts | {"verdicts": verdicts, "notes": list(self.notes)}


def assess(
    workspace: Workspace,
    models: Models | Mapping[str, Models],
    *,
    n_models: int | None = None,
    attacks: str = "grid",
    spec: MetricSpec | None = None,
    devices: Sequence[str] = (),
    progress: bool = False,
) -> Evaluation:
    """Score unlearned models against the retrained ones, with intervals, diagnosis and other measures from eight on.

    models: what `unlearn` gave, or checkpoints of one's own (a folder, a pattern, a zip, a list of files); several
    under names of one's own. n_models: of each kind, by default as many as all have. Raises InputError where one is
    broken.

    >>> import tempfile
    >>> setting = Setting("digits", "random:20", n_train=200, architecture="tinyconv", epochs=1)
    >>> workspace = prepare(setting, work_dir=tempfile.mkdtemp())
    >>> _ = retrain(workspace, 2, devices=["cpu"])
    >>> evaluation = assess(workspace, unlearn(workspace, "finetune", 2, devices=["cpu"]))
    >>> evaluation.rows["finetune"].n_models
    2
    """
    evidence = _gathered(workspace, models, n_models, attacks, spec, devices, progress)
    if evidence.faults:
        raise InputError(next(iter(evidence.faults.values())))
    rows = evidence.rows
    remark = [evidence.remark] if evidence.remark else []
    given = workspace.setting.recipe.startswith(GIVEN)
    notes = [*remark, *(doubts(evidence.samples) if given else []), *notes_on(list(rows.values()))]
    return Evaluation(rows, {name: verdict(evidence, name) for name in evidence.pools}, notes, evidence)


def score_arrays(
    unlearned: Any,
    retrained: Any,
    labels: Any = None,
    *,
    name: str = "unlearned",
    attacks: str = "grid",
    spec: MetricSpec | None = None,
    brief: bool = False,
    progress: bool = False,
) -> ArrayScore:
    """Judge arrays from anywhere by the forgetting quality, with null, intervals and diagnosis from eight models on.

    unlearned, retrained: logits (n_models, n_examples, n_classes) of the forget set, with its labels (n_examples,); or,
    without labels, confidences (n_models, n_examples): the log-odds log(p / (1 - p)) of the label's probability. The
    numbers of models may differ. Raises InputError for arrays that do not fit together, and for probabilities.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> found = score_arrays(rng.normal(5, 1, (64, 20)), rng.normal(0, 1, (64, 20)), brief=True)
    >>> found.n_models, round(found.forgetting_quality, 3)
    (64, 0.001)
    """
    options = {"spec": spec, "attacks": attacks, "brief": brief, "progress": progress}
    return judge(unlearned, retrained, labels, name=name, **options)


def report(
    workspace: Workspace,
    models: Models | Mapping[str, Models],
    out: str | Path | None = None,
    *,
    n_models: int | None = None,
    attacks: str = "grid",
    spec: MetricSpec | None = None,
    saliency: bool = True,
    devices: Sequence[str] = (),
    progress: bool = False,
) -> Path:
    """Write the HTML page of one method, or of several the page that compares them beside a page each; gives its path.

    models: as `assess` takes them. out: the page, by default beside the models. saliency: with class-activation maps.
    What is broken or missing is told on the page.

    >>> import tempfile
    >>> setting = Setting("digits", "random:20", n_train=200, architecture="tinyconv", epochs=1)
    >>> workspace = prepare(setting, work_dir=tempfile.mkdtemp())
    >>> _ = retrain(workspace, 2, devices=["cpu"])
    >>> report(workspace, unlearn(workspace, "finetune", 2, devices=["cpu"]), saliency=False).name
    'report.html'
    """
    evidence = _gathered(workspace, models, n_models, attacks, spec, devices, progress)
    several = isinstance(models, Mapping) and len(models) > 1
    archives = {name: path for name, path in _archives(models, evidence).items() if path}
    target = None if out is None else Path(out)
    pages = write_pages(evidence, evidence.pools, archives, saliency=saliency, out=None if several else target)
    if several:
        return write_comparison(evidence, pages, target or workspace.folder / COMPARISON)
    if not pages:
        raise InputError(next(iter(evidence.faults.values())))
    return next(iter(pages.values()))


def _at_least_one(n_models: int) -> None:
    if n_models < 1:
        raise InputError(f"n_models is {n_models}: expected 1 or more")


def _gathered(
    workspace: Workspace,
    models: Models | Mapping[str, Models],
    n_models: int | None,
    attacks: str,
    spec: MetricSpec | None,
    devices: Sequence[str],
    progress: bool,
) -> Evidence:
    named = models if isinstance(models, Mapping) else {_name_of(models): models}
    if not named:
        raise InputError("no models are given: expected what unlearn gave, or checkpoints")
    options = {"devices": list(devices) or devices_of(), "progress": progress}
    pools = {
        name: given if isinstance(given, ModelPool) else fill_from_files(workspace, _paths(given), **options)
        for name, given in named.items()
    }
    return gather(workspace, pools, n_models=n_models, attacks=attacks, spec=spec, progress=progress)


def _archives(models: Models | Mapping[str, Models], evidence: Evidence) -> dict[str, Path | None]:
    """Where the weights of each pool lie, if in one place."""
    named = models if isinstance(models, Mapping) else {_name_of(models): models}
    return {name: Path(given) if isinstance(given, str | Path) else None for name, given in named.items()}


def _name_of(models: Models) -> str:
    if isinstance(models, ModelPool):
        return models.identity.get("method", "unlearned")
    return Path(models).stem if isinstance(models, str | Path) else "unlearned"


def _paths(given: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(given)] if isinstance(given, str | Path) else [Path(path) for path in given]
