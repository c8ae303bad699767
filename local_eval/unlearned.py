"""N unlearned models of a method: the kit's checkpoints, kept as a pool of logits."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from kit.budget import Plan, TimeBudget, format_duration, plan_steps
from kit.emit import measure_cost, unlearn_once
from kit.errors import BrokenModelError, InputError
from kit.making import one_thread
from kit.methods import Method, get_method
from kit.seeds import checkpoint_seed
from kit.workers import n_cores
from local_eval.engine import run_jobs
from local_eval.pool import ModelPool, logits_of, write_atomically
from local_eval.setting import Workspace, reopen

_START_UP_S = 10.0  # a process that imports torch and reads the data
_BROKEN = "broken.txt"  # in the folder of a pool whose settings break the model


def unlearned_pool(workspace: Workspace, spec: str, settings: Sequence[str] = (), seed: int = 0) -> ModelPool:
    """The pool of a method (a name or file.py[:function]) with these hyper-parameters and this seed."""
    method = get_method(spec, settings)
    identity = {"kind": "unlearned", "setting": workspace.name, **method.identity, "seed": seed}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return ModelPool(workspace.folder / f"{method.name.replace(':', '-')}-{digest}", identity)


def fill_unlearned(
    workspace: Workspace,
    spec: str,
    n_models: int,
    *,
    settings: Sequence[str] = (),
    seed: int = 0,
    limit: str | float = math.inf,
    workers: int | None = None,
    progress: bool = True,
) -> ModelPool:
    """Unlearn what is missing of the first `n_models` models inside `limit`, several at once.

    Model i is the checkpoint i that kit.emit writes under the same seed and plan. Raises InputError where the limit
    does not hold them all; models made so far are kept.
    """
    budget = TimeBudget(limit)
    method = get_method(spec, settings)
    pool = unlearned_pool(workspace, spec, settings, seed)
    todo = pool.missing(n_models)
    if not todo:
        return pool
    workers = min(workers or n_cores(), len(todo))
    plan_limit = _plan_limit(workspace, method, pool, len(todo), workers, budget, seed)
    point = (tuple(settings), plan_limit)
    setup = partial(_unlearner, workspace.folder, spec, [point], seed, budget.remaining_s())
    run_jobs(setup, todo, workers=workers, description=f"unlearning: {method.name}", progress=progress)
    return pool


def fill_points(
    workspace: Workspace,
    spec: str,
    points: Sequence[Sequence[str]],
    n_models: int,
    *,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> list[ModelPool]:
    """The pools of one method at several settings, filled by one set of processes: the same models as one by one.

    Settings that break the model do not end the run: their pools stay as they are, and `broken_reason` says why.
    """
    pools = [unlearned_pool(workspace, spec, settings, seed) for settings in points]
    no_limit = TimeBudget()
    plans = [_plan_limit(workspace, get_method(spec), pool, n_models, 1, no_limit, seed) for pool in pools]
    todo = [
        index * len(points) + point  # the first model of every point first: mistakes and broken settings show early
        for point, pool in enumerate(pools)
        if broken_reason(pool) is None
        for index in pool.missing(n_models)
    ]
    setup = partial(_unlearner, workspace.folder, spec, list(zip(points, plans, strict=True)), seed, no_limit.limit_s)
    if todo:
        tolerant = partial(_tolerant, setup, [pool.folder for pool in pools])
        description = f"sweep: {get_method(spec).name}"
        run_jobs(tolerant, sorted(todo), workers=workers, description=description, progress=progress)
    return pools


def broken_reason(pool: ModelPool) -> str | None:
    """Why `fill_points` gave this pool up, one line; None where it did not."""
    path = pool.folder / _BROKEN
    return path.read_text() if path.exists() else None


def _tolerant(setup: Callable[[], Callable[[int], None]], folders: Sequence[Path]) -> Callable[[int], None]:
    """The jobs of `setup`, one pool after the other in turn; those of a pool that gave a broken model are skipped."""
    unlearn = setup()

    def unlearn_unless_broken(job: int) -> None:
        path = folders[job % len(folders)] / _BROKEN
        if path.exists():
            return
        try:
            unlearn(job)
        except BrokenModelError as error:
            write_atomically(path, str(error).encode())

    return unlearn_unless_broken


def _plan_limit(
    workspace: Workspace, method: Method, pool: ModelPool, n_left: int, workers: int, budget: TimeBudget, seed: int
) -> int | None:
    """Steps granted to each checkpoint, made once for a pool and kept beside it; None where there is no limit."""
    path = pool.folder / "plan.json"
    if path.exists():
        return json.loads(path.read_text())["steps"]
    steps, facts = None, {}
    if budget.limit_s != math.inf and method.anytime:
        with one_thread():
            loaders = workspace.loaders(method.loader)
            cost, wanted = measure_cost(method, workspace.original(), loaders, checkpoint_seed(seed, -1))
        rounds = math.ceil(n_left / workers)
        steps = plan_steps(cost, wanted, rounds, budget.remaining_s() - (_START_UP_S if workers > 1 else 0.0))
        facts = {"wanted": wanted, "fixed_s": cost.fixed_s, "step_s": cost.step_s, "limit_s": budget.limit_s}
    write_atomically(path, json.dumps({"steps": steps, **facts}).encode())
    return steps


def _unlearner(
    folder: Path, spec: str, points: Sequence[tuple[Sequence[str], int | None]], seed: int, remaining_s: float
) -> Callable[[int], None]:
    """The jobs of one process. Job j makes checkpoint j // n of point j % n, and writes its logits down.

    points: n times the settings of a method, and the steps granted to each of its checkpoints.
    """
    deadline = time.monotonic() + remaining_s
    workspace = reopen(folder)
    methods = [get_method(spec, settings) for settings, _ in points]
    pools = [unlearned_pool(workspace, spec, settings, seed) for settings, _ in points]
    model, shared = workspace.original(), workspace.loaders(methods[0].loader)
    evaluated = workspace.evaluated()
    fresh = len(points) > 1 and not methods[0].anytime  # a foreign function may write into the cached examples

    def unlearn_one(job: int) -> None:
        index, point = divmod(job, len(points))
        method, pool, plan = methods[point], pools[point], Plan(points[point][1])
        if time.monotonic() > deadline:
            raise InputError(
                f"{method.name}: the time limit is reached with {len(pool)} models made, which are kept: raise "
                f"--limit or do less in each ({format_duration(remaining_s)} were left at the start)"
            )
        loaders = workspace.loaders(method.loader) if fresh else shared
        start = time.perf_counter()
        net, attempt = unlearn_once(method, model, loaders, seed=seed, index=index, plan=plan)
        seconds = time.perf_counter() - start
        logits = logits_of(net, evaluated)
        if not all(np.isfinite(values).all() for values in logits.values()):
            raise BrokenModelError(f"{method.name}: checkpoint {index} gives NaN or infinite logits: do less to it")
        pool.add(index, logits, seconds, attempt=attempt)

    return unlearn_one
