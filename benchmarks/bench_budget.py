"""Time limits from 20 s to 5 min, five methods, `--fill`: never passed, exactly N checkpoints, how much of it is used.

A run is a process forked off this one, so that its limit counts from its first moment and its end is seen from outside
by the wall clock. smallconv on synthetic images of 32 x 32. Some runs are slowed in the middle: from 40% of the limit
on, each step waits as long as it computed; and some are slowed and freed again at 70%. Runs at once start together, and
what ends first leaves something else to compute until all have ended, so that no run's machine gets faster at its end.

python -m benchmarks.bench_budget [--n-models 24] [--limits 20 60 120 300] [--parallel 2 4 5 5]
"""

import argparse
import json
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.record import record, rounded
from kit.budget import TimeBudget
from kit.competition import ExampleDataset, Loaders, TensorLoader, make_loaders
from kit.emit import emit
from kit.ledger import Ledger
from kit.methods import get_method
from kit.tools.verify import verify
from kit.training import fine_tune
from local_eval.models import smallconv

METHODS = {
    "finetune": [],
    "random_perturbation": [],
    "negative_gradient": [],
    "ssd": ["epochs=0.5"],
    "retrain": [],
}


def problem() -> tuple[nn.Module, Loaders]:
    generator = torch.Generator().manual_seed(1)

    def part(n: int) -> ExampleDataset:
        images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return ExampleDataset(images, torch.randint(0, 10, (n,), generator=generator))

    torch.manual_seed(0)
    return smallconv(), make_loaders(part(2000), part(100), part(200), batch_size=64, loader=TensorLoader)


@contextmanager
def slowed(start_s: float, stop_s: float) -> Iterator[None]:
    """Between these seconds from now every convolution waits as long as it computed."""
    plain, begin = nn.Conv2d.forward, time.monotonic()

    def waiting(self: nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        before = time.perf_counter()
        result = plain(self, images)
        if start_s < time.monotonic() - begin < stop_s:
            time.sleep(4 * (time.perf_counter() - before))  # the backward pass takes thrice the forward: in all, double
        return result

    nn.Conv2d.forward = waiting
    try:
        yield
    finally:
        nn.Conv2d.forward = plain


def run(name: str, limit_s: float, n_models: int, slow: tuple[float, float], out: Path) -> None:
    """One emission; what it says of itself goes to out/said.json."""
    torch.set_num_threads(1)
    budget = TimeBudget(limit_s)
    model, loaders = problem()
    with slowed(slow[0] * limit_s, slow[1] * limit_s):
        result = emit(
            get_method(name, METHODS[name]),
            model,
            loaders,
            out=out,
            n_checkpoints=n_models,
            budget=budget,
            fill=True,
            progress=False,
        )
    said = {"ok": not result.faults, "reasons": result.reasons}
    (out / "said.json").write_text(json.dumps(said))


def start(task: Callable[[], None]) -> int:
    if pid := os.fork():
        return pid
    try:
        task()
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def result_of(case: dict[str, Any], out: Path, n_models: int, seconds: float, code: int) -> dict[str, Any]:
    """What is found from outside, and what the ledger says."""
    said = json.loads((out / "said.json").read_text()) if code == 0 else {"ok": False, "reasons": []}
    checks = verify(out / "submission.zip", n_models, problem()[0].state_dict())
    ledger = Ledger(out / "ledger.jsonl")
    plans, made = list(ledger.of("plan")), list(ledger.of("checkpoint"))
    speeds = [line["seconds"] / (plans[0]["fixed_s"] + line["steps"] * plans[0]["step_s"]) for line in made]
    return {
        **case,
        "seconds": seconds,
        "used": seconds / case["limit_s"],
        "passed_the_limit": seconds > case["limit_s"],
        "checkpoints": len(made),
        "verified": code == 0 and all(check.ok for check in checks),
        "plans": [line["steps"] for line in plans],
        "slowest_third": max(map(statistics.fmean, (speeds[k : k + n_models // 3] for k in range(len(speeds) - 7)))),
        "by_the_stand_in": len(said["reasons"]),
        "why": said["reasons"][:1],
        "load_average": os.getloadavg()[0],
    }


KEPT = 1.03  # a third of the checkpoints never took longer than that, as a multiple of what was measured at the start
SLOWED = {"no": (math.inf, math.inf), "from 40% on": (0.4, math.inf), "from 40% to 70%": (0.4, 0.7)}


def cases_of(limits: list[float], methods: list[str]) -> list[dict[str, Any]]:
    """Every limit with every method; of several limits the two shortest also on a machine that slows down."""
    plain = [{"method": name, "limit_s": limit, "slowed": "no"} for limit in limits for name in methods]
    kinds = [(0, "from 40% on"), (0, "from 40% to 70%"), (1, "from 40% on")] if len(limits) > 1 else []
    slow = [{"method": name, "limit_s": limits[index], "slowed": kind} for index, kind in kinds for name in methods]
    return sorted(plain + slow, key=lambda case: case["limit_s"])


def waves_of(cases: list[dict[str, Any]], parallel: dict[float, int]) -> list[list[dict[str, Any]]]:
    """Cases of one limit, as many as run at once: they start together, and the next when the last of them has ended."""
    groups = [[case for case in cases if case["limit_s"] == limit] for limit in sorted(parallel)]
    sizes = [parallel[limit] for limit in sorted(parallel)]
    return [group[k : k + size] for group, size in zip(groups, sizes, strict=True) for k in range(0, len(group), size)]


def occupy() -> None:
    """What a run that has ended leaves behind until the others of its wave end: without it the machine would get faster
    in their last minutes."""
    torch.set_num_threads(1)
    model, loaders = problem()
    while True:
        fine_tune(model, loaders.retain, 10)


def run_wave(wave: list[dict[str, Any]], n_models: int, folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of runs that start together, in the order in which they end."""
    running: dict[int, tuple[dict[str, Any], Path, float]] = {}
    busy: list[int] = []
    for case in wave:
        out = Path(tempfile.mkdtemp(dir=folder))
        task = partial(run, case["method"], case["limit_s"], n_models, SLOWED[case["slowed"]], out)
        running[start(task)] = case, out, time.monotonic()
    try:
        ended = []
        while running:
            pid, status = os.waitpid(-1, 0)
            if pid not in running:
                busy.remove(pid)
                raise RuntimeError("a process that keeps the machine busy has ended")
            case, out, begin = running.pop(pid)
            ended.append((case, out, n_models, time.monotonic() - begin, os.waitstatus_to_exitcode(status)))
            if running:
                busy.append(start(occupy))
    finally:
        for pid in (*busy, *running):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    for found in ended:
        yield result_of(*found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parallel", type=int, nargs="+", default=[2, 4, 5, 5], help="runs at once, for each limit")
    parser.add_argument("--n-models", type=int, default=24)
    parser.add_argument("--limits", type=float, nargs="+", default=[20.0, 60.0, 120.0, 300.0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--name", default="budget", help="of the record")
    options = parser.parse_args()
    parallel = dict(zip(options.limits, options.parallel, strict=True))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for wave in waves_of(cases_of(options.limits, options.methods), parallel):
            for row in run_wave(wave, options.n_models, Path(folder)):
                rows.append(row)
                print(
                    f"{row['limit_s']:>5.0f} s {row['method']:<20} slowed {row['slowed']:<16} {row['seconds']:7.2f} s "
                    f"{row['used']:6.1%} {row['checkpoints']} checkpoints, {row['by_the_stand_in']} by the "
                    f"stand-in, steps {row['plans']}",
                    flush=True,
                )
            _save(rows, options)


def _save(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    rows = sorted(rows, key=lambda row: (row["slowed"] != "no", row["limit_s"], row["method"]))
    results = {
        "n_models": options.n_models,
        "runs_at_once": dict(zip(map(str, options.limits), options.parallel, strict=True)),
        "runs": len(rows),
        "limit_passed": sum(row["passed_the_limit"] for row in rows),
        "complete_and_verified": sum(row["verified"] and row["checkpoints"] == options.n_models for row in rows),
        "at_least_95_percent_used": sum(row["used"] >= 0.95 for row in rows),
        "least_used": min(row["used"] for row in rows),
        "median_used": statistics.median(row["used"] for row in rows),
        "plan_changed_although_the_speed_was_kept": sum(
            len(row["plans"]) > 1 and row["slowest_third"] < KEPT for row in rows
        ),
        "plan_changed": sum(len(row["plans"]) > 1 for row in rows),
        "checkpoints_by_the_stand_in": sum(row["by_the_stand_in"] or 0 for row in rows),
        "rows": rows,
    }
    record(options.name, rounded(results), sys.argv)


if __name__ == "__main__":
    main()
