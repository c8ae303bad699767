"""Search a method's hyper-parameters: a low-discrepancy draw of trials, successive halving over the number of models.

A trial is one choice of hyper-parameters, measured first with few models; the best third of what was measured with as
many goes on to twice as many, whenever there is one that has not (asynchronous successive halving: Li et al. 2020, "A
System for Massively Parallel Hyperparameter Tuning"). Which trials there are depends on ranges and seed alone.
"""

import fcntl
import hashlib
import inspect
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import qmc
from tqdm import tqdm

from kit.errors import InputError, first_line
from kit.ledger import FILE_NAME, Ledger
from kit.methods import Method, with_settings
from local_eval.audit.expected import expected_at_512
from local_eval.evaluate import Sample, sample_of
from local_eval.retrained import retrained_pool
from local_eval.setting import Workspace
from local_eval.unlearned import broken_reason, file_name, fill_points

KEPT_SHARE = 1 / 3  # of the trials at one number of models, those that go on to the next
NEW_UNTIL = 0.7  # of the limit: from then on a trial is begun only where no other can get more models
Range = Sequence[Any]  # a tuple (low, high), or a list of choices


@dataclass(frozen=True)
class Result:
    """A trial with n_models models. value: the score expected at 512, accuracies included, minus infinity where the
    method gave no model; accuracies are means over models; seconds: of one checkpoint; broken: why there is none."""

    trial: int
    settings: tuple[str, ...]
    n_models: int
    value: float = -math.inf
    retain_accuracy: float = math.nan
    forget_accuracy: float = math.nan
    test_accuracy: float = math.nan
    seconds: float = math.nan
    broken: str = ""
    took_s: float = 0.0


@dataclass(frozen=True)
class Search:
    """What is searched: the method, its ranges, the numbers of models of successive halving, ascending.

    seed: of the draw of trials; unlearn_seed: of the unlearning runs. longest_s: what a checkpoint may take here.
    """

    method: Method
    ranges: Mapping[str, Range]
    rungs: Sequence[int] = (8, 16, 32)
    seed: int = 0
    unlearn_seed: int = 0
    longest_s: float = math.inf

    def settings(self, trial: int) -> tuple[str, ...]:
        """What `--set` takes for this trial; trial 0 is the method as it stands."""
        if trial == 0:
            return ()
        point = qmc.Halton(len(self.ranges), scramble=True, seed=self.seed).random(trial)[-1]
        pairs = zip(self.ranges.items(), point, strict=True)
        return tuple(f"{name}={_at(x, span, self.method.settings[name])}" for (name, span), x in pairs)

    @property
    def name(self) -> str:
        facts = [self.method.identity, {name: repr(span) for name, span in self.ranges.items()}]
        text = json.dumps([*facts, list(self.rungs), self.seed, self.unlearn_seed], sort_keys=True)
        return f"tune-{file_name(self.method.name)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def rungs_of(n_models: int) -> tuple[int, ...]:
    """A quarter, a half and all of `n_models`, at least four each.

    >>> rungs_of(32)
    (8, 16, 32)
    """
    return tuple(sorted({max(4, n_models // 4), max(4, n_models // 2), n_models}))


def ranges_of(method: Method, given: Sequence[str] = ()) -> dict[str, Range]:
    """What the search may change: `RANGES` beside the method's function, then `name=low:high` and `name=a,b,...`.

    A tuple (low, high) is searched between, in equal ratios where high is ten times a positive low or more; a list
    holds the choices. Raises InputError where there is nothing to search, and for a range that is none.
    """
    code = getattr(inspect.unwrap(method.function), "__globals__", {})
    declared = code.get("RANGES", {})
    if not isinstance(declared, Mapping):
        raise InputError(f'{method.name}: RANGES is a {type(declared).__name__}: write RANGES = {{"lr": (1e-4, 1e-2)}}')
    ranges = dict(declared)
    for text in given:
        name, equals, span = text.partition("=")
        low, colon, high = span.partition(":")
        if not equals or not span:
            raise InputError(f"--range {text}: expected name=low:high or name=a,b,...")
        ranges[name] = (_number(low, text), _number(high, text)) if colon else span.split(",")
    for name, span in ranges.items():
        _check(method, name, span)
    fixed = [name for name in ranges if name in method.hyper]
    if both := [text for text in given if text.partition("=")[0] in fixed]:
        raise InputError(f"--range {both[0]}: --set gives it one value: leave one of the two out")
    ranges = {name: span for name, span in ranges.items() if name not in fixed}
    if not ranges:
        raise InputError(
            f'{method.name}: declares no ranges to search: write RANGES = {{"lr": (1e-4, 1e-2)}} beside its function, '
            "or give --range lr=1e-4:1e-2"
        )
    return ranges


def _number(text: str, given: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"--range {given}: {text!r} is no number: expected name=low:high or name=a,b,...") from error


def _check(method: Method, name: str, span: Any) -> None:
    if name not in method.defaults:
        raise InputError(f"{method.name}: a range is given for {name!r}: it has {', '.join(method.defaults) or 'none'}")
    fault = ""
    if isinstance(span, tuple):
        numbers = [x for x in span if isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)]
        if len(span) != 2 or len(numbers) != 2 or not span[0] < span[1]:
            fault = "two numbers, the lower first, are expected"
        elif not isinstance(method.defaults[name], int | float) or isinstance(method.defaults[name], bool):
            fault = f"its default is {method.defaults[name]!r}: a list of choices is expected"
    elif not isinstance(span, list) or len(set(map(str, span))) < 2:
        fault = "a tuple (low, high) or a list of two choices or more is expected"
    if fault:
        raise InputError(f"{method.name}: the range of {name} is {span!r}: {fault}")
    for value in span:
        with_settings(method, [f"{name}={_text(value, method.defaults[name])}"])


def _at(x: float, span: Range, default: Any) -> str:
    """The value of a range at the share x of it, as --set reads it."""
    if isinstance(span, list):
        return str(span[min(int(x * len(span)), len(span) - 1)])
    low, high = span
    if isinstance(default, int):  # each whole number as often
        return str(min(int(low + x * (high - low + 1)), int(high)))
    in_ratios = low > 0 and high >= 10 * low
    return _text(low * (high / low) ** x if in_ratios else low + x * (high - low), default)


def _text(value: Any, default: Any) -> str:
    if isinstance(default, int) and not isinstance(default, bool) and isinstance(value, float):
        return str(round(value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def search(
    workspace: Workspace,
    plan: Search,
    *,
    n_trials: int | None = None,
    limit_s: float = math.inf,
    devices: Sequence[str] = (),
    progress: bool = True,
) -> list[Result]:
    """Run the search, or what is left of it, and give every result in the order of the trials, then of the models.

    The retrained models of the largest rung must be there. What is found lies in the folder `plan.name` of the
    setting; several processes may search there at once, each takes what no other is at. limit_s: seconds of searching,
    of all calls together; a measurement that began inside it is finished. n_trials: at most so many (27 without a
    limit). Raises InputError where the method fails as it stands; a later trial that fails is a result without a model.
    """
    folder = workspace.folder / plan.name
    folder.mkdir(exist_ok=True)
    n_trials = n_trials or (27 if limit_s == math.inf else 1 << 20)
    retrained = sample_of(retrained_pool(workspace), plan.rungs[-1], workspace)
    total = n_trials if limit_s == math.inf else round(limit_s)
    with tqdm(total=total, unit="trial" if limit_s == math.inf else "s", desc=plan.name, disable=not progress) as bar:
        while True:
            found = results_of(folder, plan.longest_s)
            _show(bar, found, limit_s)
            spent_s = sum(result.took_s for result in found)
            if spent_s >= limit_s:
                break
            n_new = n_trials if spent_s < NEW_UNTIL * limit_s else 0
            todo = chain(jobs(found, plan.rungs, n_new), jobs(found, plan.rungs, n_trials))
            with _taken(folder, todo) as (job, others):
                if job is None and not others:
                    break
                if job is None:
                    time.sleep(0.2)
                    continue
                result = _measure(workspace, plan, *job, retrained, devices)
                Ledger(folder / FILE_NAME).append("result", **asdict(result))
    return results_of(folder, plan.longest_s)


def results_of(folder: Path, longest_s: float = math.inf) -> list[Result]:
    """What a search's folder holds, by trial and number of models; a trial whose checkpoints take longer than
    `longest_s` is broken, which is no part of what was measured."""
    lines = Ledger(folder / FILE_NAME).of("result")
    found = {}
    for line in lines:
        values = {name: value for name, value in line.items() if name != "event"}
        result = Result(**{**values, "settings": tuple(values["settings"])})
        if not result.broken and result.seconds > longest_s:
            result = replace(result, broken=f"a checkpoint takes {result.seconds:.3g} s, above {longest_s:.3g} s")
        found[result.trial, result.n_models] = result
    return [found[key] for key in sorted(found)]


def jobs(found: Sequence[Result], rungs: Sequence[int], n_trials: int) -> Iterator[tuple[int, int]]:
    """(trial, n_models) in the order in which they should be measured: promotions, the highest first, then trials.

    n_trials: how many are begun in all. Where no more can be, the best of each rung goes on even if it is alone there.
    """
    begun = {result.trial for result in found if result.n_models == rungs[0]}
    fresh = [trial for trial in range(n_trials) if trial not in begun]
    for now, then in reversed(list(pairwise(rungs))):
        there = sorted((r for r in found if r.n_models == now and not r.broken), key=lambda r: (-r.value, r.trial))
        done = {result.trial for result in found if result.n_models == then}
        share = KEPT_SHARE * len(there)
        n_kept = math.floor(share) if fresh else math.ceil(share)
        yield from ((result.trial, then) for result in there[:n_kept] if result.trial not in done)
    yield from ((trial, rungs[0]) for trial in fresh[:64])


@contextmanager
def _taken(folder: Path, todo: Iterator[tuple[int, int]]) -> Iterator[tuple[tuple[int, int] | None, bool]]:
    """The first job that no other process is at, held for as long as the block runs, or None; and whether others are
    at one. What a process held is free again when it dies."""
    others = False
    for trial, n_models in todo:
        with (folder / f"trial-{trial}-{n_models}.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                others = True
                continue
            if any((r.trial, r.n_models) == (trial, n_models) for r in results_of(folder)):  # done a moment ago
                others = True
                continue
            yield (trial, n_models), others
            return
    yield None, others


def _measure(
    workspace: Workspace, plan: Search, trial: int, n_models: int, retrained: Sample, devices: Sequence[str]
) -> Result:
    start, settings = time.perf_counter(), plan.settings(trial)
    method = with_settings(plan.method, settings)
    measured: dict[str, Any] = {}
    try:
        (pool,) = fill_points(workspace, [method], n_models, seed=plan.unlearn_seed, devices=devices, progress=False)
        broken = broken_reason(pool) or ""
        if not broken:
            measured = measure(sample_of(pool, n_models, workspace), retrained)
    except InputError as error:
        if trial == 0:
            raise
        broken = first_line(error)
    took_s = time.perf_counter() - start
    return Result(trial, settings, n_models, broken=broken, took_s=round(took_s, 3), **measured)


def measure(unlearned: Sample, retrained: Sample) -> dict[str, float]:
    """The score expected at 512 models, mean accuracies, seconds of a checkpoint; the samples may differ in size."""
    accuracy = {part: float(unlearned.accuracy[part].mean()) for part in ("retain", "forget", "test")}
    ratio = math.prod(accuracy[part] / float(retrained.accuracy[part].mean()) for part in ("retain", "test"))
    return {
        "value": expected_at_512(unlearned.confidence, retrained.confidence) * ratio,
        **{f"{part}_accuracy": value for part, value in accuracy.items()},
        "seconds": float(np.median(unlearned.seconds)),
    }


def best_of(found: Sequence[Result]) -> Result | None:
    """The largest value among those of the most models that any trial has; None where no trial gave a model."""
    usable = [result for result in found if not result.broken]
    most = max((result.n_models for result in usable), default=0)
    return max((r for r in usable if r.n_models == most), key=lambda r: (r.value, -r.trial), default=None)


def _show(bar: tqdm, found: Sequence[Result], limit_s: float) -> None:
    at = (
        len({result.trial for result in found}) if limit_s == math.inf else min(bar.total, sum(r.took_s for r in found))
    )
    bar.update(round(at) - bar.n)
    if best := best_of(found):
        bar.set_postfix_str(f"best {best.value:.4f} of {best.n_models}: {' '.join(best.settings) or 'as it stands'}")
