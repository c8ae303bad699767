"""One unlearned checkpoint: from a copy of the original with its own seed, tried again where it fails, as bytes."""

import copy
import gc
import time
import traceback
from dataclasses import dataclass

import torch
from torch import nn

from kit.budget import Plan, StepCost, synchronize
from kit.competition import Loaders, state_difference
from kit.errors import BrokenModelError, InputError
from kit.methods import Method
from kit.seeds import checkpoint_seed, seed_everything
from kit.submission import serialize
from kit.training import device_of

_ATTEMPTS = 3
_PROBE_STEPS = (2, 6)


@dataclass(frozen=True)
class Made:
    """A checkpoint as bytes, the attempt that gave it and the seconds that its making took.

    steps: what its plan granted, None without one; why: the reason where the faster recipe made it; recipe_s: seconds
    of that alone.
    """

    index: int
    attempt: int
    data: bytes
    seconds: float
    steps: int | None = None
    why: str = ""
    recipe_s: float = 0.0


def unlearn_once(
    method: Method,
    model: nn.Module,
    loaders: Loaders,
    *,
    seed: int,
    index: int,
    plan: Plan | None = None,
    retry: bool = False,
) -> tuple[nn.Module, int]:
    """Checkpoint `index` of the run `seed`: a net unlearned from a copy of `model`, and the attempt that gave it.

    Its bits depend on model, data, seed, index and plan alone. A result with NaN or infinite weights, or with other
    tensors than the model's, is thrown away and tried again with a fresh seed; where memory ran out, with the same
    seed; after three attempts BrokenModelError. An exception of the method is an InputError at once, as a mistake in
    its code is no better the next time; with `retry` it is tried again like a broken result.
    """
    attempt, fault = 0, ""
    for _ in range(_ATTEMPTS):
        attempt_seed = checkpoint_seed(seed, index, attempt)
        seed_everything(attempt_seed)
        net, short_of_memory = None, False
        try:
            net = method(copy.deepcopy(model), loaders, seed=attempt_seed, plan=plan)
        except InputError:
            raise
        except Exception as error:  # whatever a participant's function raises
            frames = traceback.extract_tb(error.__traceback__)
            where = [frame for frame in frames if "site-packages" not in frame.filename][-1]  # the method's own line
            fault = f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})"
            short_of_memory = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "allocate memory" in fault
            if not (retry or short_of_memory):
                raise InputError(f"{method.name}: checkpoint {index} failed: {fault}") from error
        if net is not None:
            synchronize(device_of(model))
            fault = state_difference(net.state_dict(), model.state_dict()) or ""
            if not fault:
                return net, attempt
        attempt += not short_of_memory
        if short_of_memory:  # here the failed attempt's frames are gone, and with them what they held
            gc.collect()
            torch.cuda.empty_cache()
    raise BrokenModelError(
        f"{method.name}: checkpoint {index} is no model in {_ATTEMPTS} attempts ({fault}): "
        "lower the learning rate or the batch size, and return the net itself or nothing"
    )


def make_one(
    method: Method,
    model: nn.Module,
    loaders: Loaders,
    *,
    seed: int,
    index: int,
    plan: Plan | None = None,
    dtype: torch.dtype | None = None,
    retry: bool = False,
) -> Made:
    """`unlearn_once`, timed and as bytes."""
    start = time.perf_counter()
    net, attempt = unlearn_once(method, model, loaders, seed=seed, index=index, plan=plan, retry=retry)
    data = serialize(net.state_dict(), dtype)
    return Made(index, attempt, data, time.perf_counter() - start, plan.limit if plan else None)


def measure_cost(
    method: Method, model: nn.Module, loaders: Loaders, seed: int, *, fill: bool = False, within_s: float = 0.0
) -> tuple[StepCost, int]:
    """Time of one checkpoint as a fixed part and a part per step, and the steps the method wants.

    Two short runs of an anytime method after one that warms up, and a longer one where `within_s` seconds hold it, of
    a quarter of the steps wanted at most; none of them is kept. fill: measure up to more steps than the method wants.
    """

    def timed(limit: int) -> tuple[int, float, int]:
        plan = Plan(limit, fill=fill)
        start = time.perf_counter()
        seed_everything(seed)
        method(copy.deepcopy(model), loaders, seed=seed, plan=plan)
        synchronize(device_of(model))
        wanted = plan.wanted or 0
        return limit if fill else min(limit, wanted), time.perf_counter() - start, wanted

    _, short, long = (timed(limit) for limit in (1, *_PROBE_STEPS))
    cost, wanted = _cost_of(short, long), long[2]
    held = cost.steps_within(within_s) if fill else min(wanted // 4, cost.steps_within(within_s))
    if cost.step_s and held > 2 * _PROBE_STEPS[1]:
        cost = _cost_of(short, timed(held))
    return cost, wanted


def _cost_of(short: tuple[int, float, int], long: tuple[int, float, int]) -> StepCost:
    """Of two runs with their steps and seconds."""
    (few, few_s, _), (many, many_s, _) = short, long
    if many == few:
        return StepCost(fixed_s=many_s, step_s=0.0)
    step_s = (many_s - few_s) / (many - few)
    if step_s <= 0:  # more steps took less time: something disturbed the shorter run, and a step costs at most this
        return StepCost(fixed_s=0.0, step_s=many_s / many)
    return StepCost(fixed_s=max(0.0, few_s - few * step_s), step_s=step_s)
