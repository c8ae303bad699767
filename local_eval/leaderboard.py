"""The leaderboard: methods on one setting, each with its score, what that is worth, its accuracies and its time.

Methods are made and read one after another: one that fails has an entry that says why, and 512 models of thirty methods
need not fit the memory at once. What all share, the null and the retrained models, is read and computed once.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from kit.competition import N_CHECKPOINTS
from kit.errors import InputError, first_line
from kit.methods import Method, method_names
from kit.tools.folder import find_method, own_methods
from local_eval.assess import form_of, nulls_of
from local_eval.audit.intervals import Interval
from local_eval.dry_run.projection import EPOCH_S
from local_eval.evaluate import Row, Sample, null_row, read_samples, sample_of, score_row
from local_eval.metric import FORMS, MetricSpec
from local_eval.metric.score import Attack
from local_eval.report.evidence import starter_of
from local_eval.report.kaggle import BY_METHOD, LIMIT_S
from local_eval.rows import DO_NOTHING, NULL
from local_eval.setting import Workspace
from local_eval.unlearned import broken_reason, fill_points, unlearned_pool

# Every method of the kit, the symmetrised variant of the first prize's, and the fifth prize's mixture.
KITS_OWN = tuple(name for name in method_names() if name != "do_nothing")
KITS_OWN += ("fanchuan reverse_kl=0.85", "mixture(transpose=246, pseudo_label=266)")
_OUTSIDE = r"(?![^()]*\))"  # behind a separator that stands in no brackets
YES, NO, UNKNOWN = "yes", "no", "unknown"


@dataclass(frozen=True)
class Entrant:
    """A method of the board. name: as it was written, with its settings; kaggle: its score there, where known."""

    name: str
    method: Method
    kaggle: float | None = None


@dataclass(frozen=True)
class Entry:
    """One line. score, share of the null and the score predicted at 512 models with their intervals, None where there
    is none (unpredicted: why); accuracies and seconds a checkpoint are means over models.

    hours_on_t4: of 512 checkpoints on the competition's data, an estimate, None where unknown; fault: why there is no
    entry, one line; the rest is then empty.
    """

    name: str
    settings: Mapping[str, object]
    kaggle: float | None = None
    pool: Path | None = None
    fault: str = ""
    score: Interval | None = None
    share: Interval | None = None
    predicted: Interval | None = None
    unpredicted: str = ""
    retain_accuracy: float | None = None
    forget_accuracy: float | None = None
    test_accuracy: float | None = None
    seconds: float | None = None
    hours_on_t4: float | None = None

    @property
    def fits_t4(self) -> str:
        """Do 512 checkpoints fit the competition's limit on one T4?"""
        if self.hours_on_t4 is None:
            return UNKNOWN
        return YES if 3600 * self.hours_on_t4 <= LIMIT_S else NO


@dataclass(frozen=True)
class Leaderboard:
    """entries: the highest score first, those with a fault last; null and nothing: what retraining and doing nothing
    get; rows: those of the last two, for the notes."""

    n_models: int
    entries: Sequence[Entry]
    null: Entry
    nothing: Entry
    rows: Sequence[Row]


def entrants(text: str | None = None) -> list[Entrant]:
    """The methods of a list `a, file.py, mixture(a=1, b=2), a lr=0.01`, settings behind a name; by default all of the
    kit's and of the folder that LOCAL_EVAL_METHODS names. Raises InputError as `find_method` does, and for one that is
    named twice."""
    words = [*KITS_OWN, *own_methods()] if text is None else [word.strip() for word in re.split("," + _OUTSIDE, text)]
    known = {_key(_method(words)): score for words, score in BY_METHOD.items()}
    found: dict[str, Entrant] = {}
    for word in words:
        if not word:
            raise InputError(f"--methods {text}: an empty name: expected NAME,NAME, each with its settings behind it")
        method = _method(word)
        key = _key(method)
        if key in found:
            raise InputError(f"--methods: {word} is {found[key].name}: give each method once")
        name = " ".join([method.name, *(f"{name}={value}" for name, value in method.hyper.items())])
        found[key] = Entrant(name, method, known.get(key))
    return list(found.values())


def split_words(text: str) -> list[str]:
    """A method and its settings: `mixture(a=1, b=2) a.lr=0.1` -> both."""
    return re.split(r"\s+" + _OUTSIDE, text)


def _method(words: str) -> Method:
    spec, *settings = split_words(words)
    return find_method(spec, settings)


def _key(method: Method) -> str:
    return repr(method.identity)


def fill_board(
    workspace: Workspace,
    chosen: Sequence[Entrant],
    n_models: int,
    *,
    seed: int = 0,
    devices: Sequence[str] = (),
    progress: bool = True,
) -> dict[str, str]:
    """Unlearn what is missing of `n_models` models of each method; name -> why not, for those that fail."""
    faults = {}
    for entrant in chosen:
        try:
            (pool,) = fill_points(workspace, [entrant.method], n_models, seed=seed, devices=devices, progress=progress)
        except InputError as error:
            faults[entrant.name] = first_line(error)
            continue
        if reason := broken_reason(pool):
            faults[entrant.name] = reason
    return faults


def leaderboard(
    workspace: Workspace,
    chosen: Sequence[Entrant],
    n_models: int,
    faults: Mapping[str, str] | None = None,
    *,
    seed: int = 0,
    spec: MetricSpec | None = None,
    attack: Attack = FORMS["grid"],
    progress: bool = False,
) -> Leaderboard:
    """The board of pools that are filled, but for those with faults. At least 8 models, as intervals need.

    The hours on a T4 come from the time of the starter's fine-tuning in this setting: a method that takes so many times
    as long takes so many epochs of a T4 (see `local_eval.dry_run.projection`), within a factor of two. They are unknown
    where the setting has no models of the starter's.
    """
    spec, faults = spec or MetricSpec(), dict(faults or {})
    samples = read_samples(workspace, {}, n_models)
    retrained, original = samples.retrained, samples.original.repeated(n_models)
    nulls = nulls_of(retrained.confidence, n_models, spec, attack)
    starter_s = _starter_seconds(workspace, n_models)

    def entry(of: Entry, sample: Sample) -> Entry:
        form = form_of(sample, retrained, nulls, spec, attack, groups=samples.groups)
        found = replace(of, score=form.score, share=form.share, predicted=form.predicted, unpredicted=form.unpredicted)
        return _measured(found, sample, starter_s)

    entries = []
    for entrant in tqdm(chosen, desc="assessing", disable=not progress):
        pool = unlearned_pool(workspace, entrant.method, seed)
        empty = Entry(entrant.name, entrant.method.settings, entrant.kaggle, pool.folder)
        try:
            if fault := faults.get(entrant.name):
                raise InputError(fault)
            entries.append(entry(empty, sample_of(pool, n_models, workspace)))
        except InputError as error:
            entries.append(replace(empty, fault=first_line(error)))
    entries.sort(key=lambda one: (bool(one.fault), -one.score.value if one.score else 0.0))
    null = nulls[n_models]
    return Leaderboard(
        n_models,
        entries,
        _measured(_null_entry(nulls, n_models), retrained, None),
        replace(entry(Entry(DO_NOTHING, {}), original), seconds=None),
        [score_row(DO_NOTHING, original, retrained, spec, attack), null_row(retrained, null, spec, attack)],
    )


def _null_entry(nulls: Mapping, n_models: int) -> Entry:
    at_n, at_512 = nulls[n_models], nulls[N_CHECKPOINTS]
    return Entry(NULL, {}, score=at_n and at_n.quality, predicted=at_512 and at_512.quality)


def _measured(entry: Entry, sample: Sample, starter_s: float | None) -> Entry:
    accuracy = {f"{part}_accuracy": float(sample.accuracy[part].mean()) for part in ("retain", "forget", "test")}
    seconds = float(sample.seconds.mean())
    hours = N_CHECKPOINTS * EPOCH_S["T4"] * seconds / starter_s / 3600 if starter_s and seconds else None
    return replace(entry, **accuracy, seconds=seconds, hours_on_t4=hours)


def _starter_seconds(workspace: Workspace, n_models: int) -> float | None:
    """Of a checkpoint of the starter's fine-tuning, one epoch, where the setting has its models."""
    name, pools = starter_of(workspace, {}, n_models)
    return float(pools[name].read(n_models)["seconds"].mean()) if pools else None
