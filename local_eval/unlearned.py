"""N unlearned models of a method: the kit's checkpoints, kept as a pool of logits."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from kit.budget import Plan, TimeBudget, format_duration, plan_steps
from kit.emit import measure_cost, unlearn_once
from kit.errors import InputError
from kit.methods import Method, get_method
from kit.seeds import checkpoint_seed
from local_eval.engine import n_cores, one_thread, run_jobs
from local_eval.pool import ModelPool, logits_of, write_atomically
from local_eval.setting import Workspace, reopen


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
    setup = partial(_unlearner, workspace.folder, spec, tuple(settings), seed, plan_limit, budget.remaining_s())
    run_jobs(setup, todo, workers=workers, description=f"unlearning: {method.name}", progress=progress)
    return pool


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


_START_UP_S = 10.0  # a process that imports torch and reads the data


def _unlearner(
    folder: Path, spec: str, settings: Sequence[str], seed: int, plan_limit: int | None, remaining_s: float
) -> Callable[[int], None]:
    """The job of one process: make checkpoint `index` and write its logits down."""
    deadline = time.monotonic() + remaining_s
    workspace = reopen(folder)
    method = get_method(spec, settings)
    model, loaders = workspace.original(), workspace.loaders(method.loader)
    evaluated = workspace.evaluated()
    pool = unlearned_pool(workspace, spec, settings, seed)

    def unlearn_one(index: int) -> None:
        if time.monotonic() > deadline:
            raise InputError(
                f"{method.name}: the time limit is reached with {len(pool)} models made, which are kept: raise "
                f"--limit or do less in each ({format_duration(remaining_s)} were left at the start)"
            )
        start = time.perf_counter()
        net, attempt = unlearn_once(method, model, loaders, seed=seed, index=index, plan=Plan(plan_limit))
        seconds = time.perf_counter() - start
        pool.add(index, logits_of(net, evaluated), seconds, attempt=attempt)

    return unlearn_one
