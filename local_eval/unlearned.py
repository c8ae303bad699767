"""N unlearned models of a method: the kit's checkpoints, kept as a pool of logits."""

import hashlib
import json
import math
import pickle
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from kit.budget import TimeBudget, format_duration
from kit.checkpoint import CheckpointJob, Maker
from kit.competition import BATCH_SIZE, Loaders
from kit.device import is_out_of_memory, reproducible
from kit.emit import make
from kit.errors import BrokenModelError, InputError
from kit.ledger import FILE_NAME, Ledger, write_atomically
from kit.methods import Method, Mixture, get_method, method_names
from kit.schedule import Run, Scheduler
from local_eval.devices import hidden_cuda, processes_for
from local_eval.engines import Cluster, run_all
from local_eval.pool import ModelPool, logits_of, on_device
from local_eval.setting import Workspace, reopen
from local_eval.shard import WHOLE, Shard

_LONGEST_NAME = 100
_BROKEN = "broken.txt"  # in the folder of a pool whose settings break the model


def unlearned_pool(workspace: Workspace, method: Method, seed: int = 0, limit: str | float = math.inf) -> ModelPool:
    """The pool of a method with its hyper-parameters, this seed and this time limit."""
    identity = {"kind": "unlearned", "setting": workspace.name, **method.identity, "seed": seed}
    identity["batch_size"] = BATCH_SIZE
    if (limit_s := TimeBudget(limit).limit_s) != math.inf:
        identity["limit_s"] = limit_s
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return ModelPool(workspace.folder / f"{file_name(method.name)}-{digest}", identity)


def emptied(pool: ModelPool) -> ModelPool:
    """The pool without its models and all that was written down of them."""
    shutil.rmtree(pool.folder)
    return ModelPool(pool.folder, pool.identity)


def file_name(method: str) -> str:
    """A method's name without what a file's name or a command line takes for something else."""
    return re.sub(r"[:(=, ]+", "-", method).rstrip(")")[:_LONGEST_NAME]


def fill_unlearned(
    workspace: Workspace,
    method: Method,
    n_models: int,
    *,
    seed: int = 0,
    limit: str | float = math.inf,
    shard: Shard = WHOLE,
    devices: Sequence[str] = (),
    progress: bool = True,
    on_checkpoint: Callable[[int, float], None] | None = None,
) -> ModelPool:
    """Unlearn what is missing of the first `n_models` models inside `limit`, several at once.

    Model i is the checkpoint i that kit.emit writes under the same seed and plan. devices: a process for each entry, by
    default as `devices_of` chooses them. Raises InputError where the limit does not hold all models; those made so far
    are kept. shard: as in `fill_retrained`, without a limit only: one plan holds for all models, and machines that
    start apart would each measure their own. on_checkpoint: called with the number and the seconds of each model that
    is made, in this process.
    """
    budget = TimeBudget(limit)
    if shard != WHOLE and budget.limit_s != math.inf:
        raise InputError("a shard beside a time limit: the limit holds for all models, which other machines make too")
    if isinstance(devices, Cluster):
        if budget.limit_s != math.inf:
            raise InputError("a cluster beside a time limit: one plan of steps holds for all models of a limit")
        (pool,) = fill_points(workspace, [method], n_models, seed=seed, shard=shard, devices=devices, progress=progress)
        if reason := broken_reason(pool):
            raise BrokenModelError(reason)
        return pool
    pool = _begun(unlearned_pool(workspace, method, seed, limit), method)
    todo = shard.of(pool.missing(n_models))
    if todo:
        devices = processes_for(devices, workspace, len(todo))
        run = Run(method, Ledger(pool.folder / FILE_NAME), budget, n_models, len(devices), stands_in=False)
        setup = partial(_one_on, workspace.folder, _sealed(method), pool, seed)
        with reproducible():
            make(Scheduler(run, todo), setup, devices, progress, on_checkpoint)
    return pool


def fill_points(
    workspace: Workspace,
    methods: Sequence[Method],
    n_models: int,
    *,
    seed: int = 0,
    shard: Shard = WHOLE,
    devices: Sequence[str] = (),
    progress: bool = True,
) -> list[ModelPool]:
    """The pools of several methods, or of one with several settings, filled by one set of processes: the same models as
    one by one.

    Settings that break the model do not end the run: their pools stay as they are, and `broken_reason` says why.
    """
    pools = [_begun(unlearned_pool(workspace, method, seed), method) for method in methods]
    todo = sorted(
        index * len(pools) + point  # the first model of every point first: mistakes and broken settings show early
        for point, pool in enumerate(pools)
        if broken_reason(pool) is None
        for index in shard.of(pool.missing(n_models))
    )
    if todo:
        devices = processes_for(devices, workspace, len(todo))
        setup = partial(_points_on, workspace.folder, [_sealed(method) for method in methods], pools, seed)
        what = methods[0].name if len(methods) == 1 else f"sweep: {methods[0].name}"
        run_all(setup, todo, devices, description=what, progress=progress)
    return pools


def broken_reason(pool: ModelPool) -> str | None:
    """Why `fill_points` gave this pool up, one line; None where it did not."""
    path = pool.folder / _BROKEN
    return path.read_text() if path.exists() else None


def _begun(pool: ModelPool, method: Method) -> ModelPool:
    """Begin the pool's ledger with what a command line calls the method: nothing for a function of a notebook."""
    ledger = Ledger(pool.folder / FILE_NAME)
    if ledger.first("start") is None:
        settings = [f"{key}={value}" for key, value in method.hyper.items()]
        ledger.append("start", method=_spec_of(method), settings=settings)
    return pool


def _spec_of(method: Method) -> str:
    """What `get_method` makes it of; "" where it is a function of a notebook."""
    if isinstance(method, Mixture):
        specs = [_spec_of(part) for part in method.parts]
        shares = (f"{spec}={weight}" for spec, weight in zip(specs, method.weights, strict=True))
        return f"mixture({', '.join(shares)})" if all(specs) else ""
    ours = method.name in method_names() and get_method(method.name).source == method.source
    return (method.file if ":" in method.name else method.file.rpartition(":")[0]) or (method.name if ours else "")


def method_options(pool: ModelPool) -> tuple[str, list[str]]:
    """The method of a pool and its settings, as a command line takes them; "" where it cannot name the method."""
    start = Ledger(pool.folder / FILE_NAME).first("start") or {}
    return start.get("method", ""), start.get("settings", [])


def plans_of(pool: ModelPool) -> list[dict[str, Any]]:
    """The plans of steps that a pool was made by, the first and those that it was lowered to; none without a limit."""
    return list(Ledger(pool.folder / FILE_NAME).of("plan"))


def limit_facts(pool: ModelPool) -> dict[str, Any]:
    """limit_s and the steps that the method wanted and got, 0 where it takes no plan; empty without a limit."""
    if (limit_s := pool.identity.get("limit_s")) is None:
        return {}
    plans = plans_of(pool) or [{"wanted": 0, "steps": 0}]
    wanted, steps = plans[0]["wanted"], plans[-1]["steps"]
    return {"limit_s": limit_s, "wanted": wanted, "steps": steps, "shortened": steps < wanted}


def limit_text(pool: ModelPool) -> str:
    """What the time limit did to the method, in words; empty without one."""
    if not (facts := limit_facts(pool)):
        return ""
    what = f"{facts['steps']} of {facts['wanted']} wanted steps" if facts["shortened"] else "which shortened nothing"
    return f"under a limit of {format_duration(facts['limit_s'])}: {what}"


def limit_notes(pools: Mapping[str, ModelPool]) -> list[str]:
    """The same as a sentence for each pool with a limit."""
    return [f"{name}: {text}" for name, pool in pools.items() if (text := limit_text(pool))]


def _keep(
    pool: ModelPool, evaluated: Mapping[str, Any], index: int, net: nn.Module, *, seconds: float = 0.0, **facts: Any
) -> None:
    """Write the logits of a model down; below index 0 nothing is left behind."""
    logits = logits_of(net, evaluated)
    if not all(np.isfinite(values).all() for values in logits.values()):
        method = pool.identity["method"]
        raise BrokenModelError(f"{method}: checkpoint {index} gives NaN or infinite logits: do less to it")
    if index >= 0:
        pool.add(index, logits, seconds, net, **facts)


def _makers_on(
    workspace: Workspace, methods: Sequence[Method], pools: Sequence[ModelPool], seed: int, device: str
) -> list[Maker]:
    """What makes the models of each pool in one process; they share model and data."""
    model, evaluated = workspace.original().to(device), on_device(workspace.evaluated(), device)
    loaders = {method.loader: loaders_for(workspace, method, device) for method in methods}
    return [
        Maker(method, partial(_keep, pool, evaluated), model, loaders[method.loader], seed)
        for method, pool in zip(methods, pools, strict=True)
    ]


def _sealed(method: Method) -> Method | bytes:
    """A method of a user's file as bytes, so that the file is run where it is known on which device: what it chooses
    when it is run is then as right as what it chooses when it is called."""
    return pickle.dumps(method) if method.file else method


def _opened(method: Method | bytes, device: str) -> Method:
    with hidden_cuda(device):
        return pickle.loads(method) if isinstance(method, bytes) else method


def _one_on(folder: Path, method: Method | bytes, pool: ModelPool, seed: int, device: str) -> Callable[[Any], Any]:
    """The jobs of one process, of a single method."""
    (maker,) = _makers_on(reopen(folder), [_opened(method, device)], [pool], seed, device)

    def make_one(job: CheckpointJob) -> Any:
        with hidden_cuda(device):
            return maker(job)

    return make_one


def _points_on(
    folder: Path, methods: Sequence[Method | bytes], pools: Sequence[ModelPool], seed: int, device: str
) -> Callable[[int], bool]:
    """The jobs of one process, of several methods: job j is model j // n of the pool j % n. False where the method is
    given up, as it breaks the model."""
    workspace = reopen(folder)
    makers = _makers_on(workspace, [_opened(method, device) for method in methods], pools, seed, device)

    def make_one(job: int) -> bool:
        index, point = divmod(job, len(pools))
        maker, path = makers[point], pools[point].folder / _BROKEN
        if path.exists():
            return False
        if not maker.method.anytime:  # a foreign function may have written into the images of another point
            maker = replace(maker, loaders=loaders_for(workspace, maker.method, device))
        try:
            with hidden_cuda(device):
                maker(CheckpointJob(index))
        except BrokenModelError as error:
            if is_out_of_memory(error):  # no fault of the settings: fewer processes may hold it
                raise
            write_atomically(path, str(error).encode())
            return False
        return True

    return make_one


def loaders_for(workspace: Workspace, method: Method, device: str) -> Loaders:
    """What a method is given, on its device; a foreign function moves its batches itself, as the starter's does."""
    return workspace.loaders(method.loader, device=device if method.anytime else "cpu")
