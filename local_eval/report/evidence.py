"""Everything that a page shows, gathered from pools; what cannot be shown is named instead of raised."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kit.errors import InputError
from kit.methods import get_method
from local_eval.assess import FEWEST, Assessment, agreement, assess, measures
from local_eval.audit.families import Agreement
from local_eval.distances import Distance, distances
from local_eval.evaluate import Row, Samples, evaluate, read_samples
from local_eval.metric import MetricSpec, form_of
from local_eval.pool import ModelPool
from local_eval.retrained import retrained_pool
from local_eval.rows import DO_NOTHING, NULL
from local_eval.setting import Workspace
from local_eval.unlearned import broken_reason, limit_facts

STARTER = "starter's fine-tuning"


@dataclass(frozen=True)
class Evidence:
    """pools: what was asked for and can be read, by name; faults: name -> what is wrong with the others, and "" -> what
    leaves nothing to judge at all (samples are None then); remark: why fewer models count than there are; starter: the
    name under which the starter's fine-tuning is among the samples, None where the setting has none. assessments,
    above, measured are empty below FEWEST models."""

    workspace: Workspace
    pools: Mapping[str, ModelPool]
    faults: Mapping[str, str]
    spec: MetricSpec
    attacks: str
    samples: Samples | None = None
    rows: Mapping[str, Row] = field(default_factory=dict)
    distances: Mapping[str, Distance] = field(default_factory=dict)
    assessments: Mapping[str, Assessment] = field(default_factory=dict)
    above: Mapping[tuple[str, str], float] = field(default_factory=dict)
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    agreement: Agreement | None = None
    starter: str | None = None
    remark: str = ""

    @property
    def null(self) -> Row | None:
        return self.rows.get(NULL)

    def probability_above(self, a: str, b: str) -> float | None:
        """How sure a scores above b; None where they were not compared."""
        if (b, a) in self.above:
            return 1 - self.above[b, a]
        return self.above.get((a, b))


def gather(
    workspace: Workspace,
    pools: Mapping[str, ModelPool],
    *,
    faults: Mapping[str, str] | None = None,
    n_models: int | None = None,
    spec: MetricSpec | None = None,
    attacks: str = "grid",
    progress: bool = False,
) -> Evidence:
    """Read and assess the pools of one setting, with the starter's fine-tuning beside them where the setting has it.

    faults: pools that could not be opened. n_models: of each pool; by default as many as all have that have enough to
    be judged. Pools that are broken, too small or of another setting become faults; nothing is raised for them.
    """
    spec, attack = spec or MetricSpec(), form_of(attacks)
    faults = dict(faults or {})
    faults |= {name: reason for name, pool in pools.items() if (reason := broken_reason(pool))}
    pools = {name: pool for name, pool in pools.items() if name not in faults}
    counts = {name: len(pool) for name, pool in {**pools, "retraining": retrained_pool(workspace)}.items()}
    enough = {name: count for name, count in counts.items() if count >= FEWEST or name == "retraining"}
    fewest = min(enough if len(enough) > 1 else counts, key=counts.__getitem__)
    n, most = n_models or counts[fewest], max(counts.values())
    try:
        if n < 2:
            raise InputError(f"{n} models: the score compares distributions and needs at least 2, better 64 or more")
        if n_models is not None and n > counts["retraining"]:
            raise InputError(f"{n} models of each kind are asked for, there are {counts['retraining']} retrained ones")
        read_samples(workspace, {}, n)
        faults |= _unreadable(workspace, pools, n)
    except InputError as error:
        faults[""] = str(error)
    pools = {name: pool for name, pool in pools.items() if name not in faults}
    if "" in faults or not pools:
        return Evidence(workspace, pools, faults, spec, attacks)
    starter, beside = starter_of(workspace, pools, n)
    samples = read_samples(workspace, {**pools, **beside}, n)
    rows = {row.name: row for row in evaluate(samples, spec, attack)}
    apart = distances(samples)
    found = {"samples": samples, "rows": rows, "distances": apart, "starter": starter}
    if n_models is None and n < most:
        found["remark"] = f"Only {n} models of each kind are counted, as {fewest} has no more; others have {most}."
    if n >= FEWEST and len(workspace.splits.forget) > 1:
        assessments, above = assess(samples, spec, attacks=attacks, progress=progress)
        measured = measures(samples, apart)
        found["assessments"] = {assessment.name: assessment for assessment in assessments}
        found |= {"above": above, "measured": measured}
        found["agreement"] = agreement({name: rows[name].score for name in pools}, measured)
    return Evidence(workspace, pools, faults, spec, attacks, **found)


def _unreadable(workspace: Workspace, pools: Mapping[str, ModelPool], n_models: int) -> dict[str, str]:
    """Pools that do not give n_models models of this setting, and why."""
    try:
        read_samples(workspace, pools, n_models)
        return {}
    except InputError:
        faults = {}
    for name, pool in pools.items():
        try:
            read_samples(workspace, {name: pool}, n_models)
        except InputError as error:
            too_few = f"{pool.folder}: holds {len(pool)} of {n_models} models: run the step that fills it"
            faults[name] = too_few if pool.missing(n_models) else str(error)
    return faults


def starter_of(
    workspace: Workspace, pools: Mapping[str, ModelPool], n_models: int
) -> tuple[str | None, dict[str, ModelPool]]:
    """The starter's fine-tuning: its name where it is among the pools, or the setting's own pool of it."""
    starter = get_method("finetune").identity

    def is_starter(pool: ModelPool) -> bool:
        same = all(pool.identity.get(name) == value for name, value in starter.items())
        return same and not limit_facts(pool).get("shortened")

    for name, pool in pools.items():
        if is_starter(pool):
            return name, {}
    for folder in sorted(workspace.folder.glob("finetune-*/pool.json")):
        pool = ModelPool.open(folder.parent)
        if is_starter(pool) and not pool.missing(n_models) and not _unreadable(workspace, {STARTER: pool}, n_models):
            return STARTER, {STARTER: pool}
    return None, {}


def methods_of(evidence: Evidence) -> list[str]:
    """Names of the samples, best score first; doing nothing and the starter are among them."""
    beside = [name for name in (STARTER, DO_NOTHING) if name in evidence.rows]
    named = [*evidence.pools, *beside]
    return sorted(named, key=lambda name: -evidence.rows[name].score)
