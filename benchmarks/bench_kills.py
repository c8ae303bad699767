"""Runs killed with SIGKILL at random and continued by the same call: each archive equals the uninterrupted one.

Half of the runs are of an anytime method with a plan, half of a foreign function of four arguments; some of them are
killed several times, also while they continue, close the archive or verify it. A run is a process forked off this one,
which has imported everything and computed nothing, so that a kill costs no import.

python -m benchmarks.bench_kills [--n 200]
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from benchmarks.record import record, rounded
from kit.budget import TimeBudget
from kit.competition import ExampleDataset, Loaders, TensorLoader, make_loaders
from kit.emit import emit
from kit.ledger import Ledger
from kit.methods import Method, get_method, method_of
from kit.tools.verify import verify
from local_eval.models import tinyconv

N_CHECKPOINTS = 12


def foreign(net: nn.Module, retain: DataLoader, forget: DataLoader, validation: DataLoader) -> None:
    """A participant's function: its own optimiser, its own loop, nothing told to it."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    net.train()
    for _ in range(2):
        for batch in retain:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(batch["image"]), batch["age_group"]).backward()
            optimizer.step()


METHODS = {"finetune": get_method("finetune", ["epochs=4"]), "foreign": method_of(foreign)}


def problem(method: Method) -> tuple[nn.Module, Loaders]:
    generator = torch.Generator().manual_seed(1)

    def part(n: int) -> ExampleDataset:
        images = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=generator)
        return ExampleDataset(images, torch.randint(0, 10, (n,), generator=generator))

    loader = TensorLoader if method.anytime else DataLoader
    torch.manual_seed(0)
    return tinyconv(), make_loaders(part(160), part(20), part(20), batch_size=16, loader=loader)


def start(name: str, out: Path) -> int:
    """Fork a process that makes the archive of a method; its id."""
    if pid := os.fork():
        return pid
    try:
        torch.set_num_threads(1)
        tqdm.set_lock(threading.RLock())  # the one of this program would be held for ever by a process that is killed
        model, loaders = problem(METHODS[name])
        budget = TimeBudget("1h")
        result = emit(
            METHODS[name], model, loaders, out=out, n_checkpoints=N_CHECKPOINTS, budget=budget, progress=False
        )
        os._exit(0 if not result.faults else 3)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(4)


def wait(pid: int) -> int:
    """Exit code of a process."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed(pid: int, out: Path, n_done: int, pause_s: float) -> int:
    """Kill a process once its ledger has so many checkpoints and a little later; its exit code."""
    ledger, due = out / "ledger.jsonl", math.inf
    while time.monotonic() < due:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if due == math.inf and (n_done == 0 or (ledger.exists() and ledger.read_bytes().count(b'"crc32"') >= n_done)):
            due = time.monotonic() + pause_s
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return wait(pid)


def finished(out: Path) -> set[int]:
    """Checkpoints that lie under their final names."""
    return {int(path.stem.rpartition("_")[2]) for path in out.rglob("unlearned_checkpoint_*.pth")}


def where(out: Path) -> str:
    """What a killed run had reached."""
    if not (out / "ledger.jsonl").exists():
        return "before its ledger"
    if Ledger(out / "ledger.jsonl").first("end"):
        return "verifying"
    made = len(finished(out))
    if made == N_CHECKPOINTS:
        return "packing the archive"
    return "between checkpoints" if made else "before the first checkpoint"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="kills")
    n = parser.parse_args().n
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        whole, whole_s = {}, {}
        for name in METHODS:
            out, begin = Path(folder) / f"whole-{name}", time.monotonic()
            assert wait(start(name, out)) == 0
            whole_s[name] = time.monotonic() - begin
            whole[name] = (out / "submission.zip").read_bytes()
        kills, runs, reached = Counter(), Counter(), Counter()
        lost, begun_again, made_again, faults = 0, 0, [], []
        while sum(kills.values()) < n:
            name = list(METHODS)[sum(runs.values()) % len(METHODS)]
            out = Path(folder) / "run"
            shutil.rmtree(out, ignore_errors=True)
            runs[name] += 1
            kept: set[int] = set()
            for _ in range(rng.choice((1, 2, 3, 4))):
                n_done = rng.randint(min(len(kept), N_CHECKPOINTS), N_CHECKPOINTS)
                pause_s = rng.random() * (0.04 if n_done else 0.3)
                code = killed(start(name, out), out, n_done, pause_s)
                if code == -signal.SIGKILL:
                    kills[name] += 1
                    reached[where(out)] += 1
                    kept = finished(out) or kept
                elif code:
                    faults.append({"method": name, "exit_code": code})
                else:
                    break
            code = wait(start(name, out))
            same = code == 0 and (out / "submission.zip").read_bytes() == whole[name]
            if not same:
                faults.append({"method": name, "exit_code": code, "equal": False})
                lost += 1
            else:
                again = Counter(line["index"] for line in Ledger(out / "ledger.jsonl").of("checkpoint"))
                made_again.append(sum(again[index] - 1 for index in kept))
                begun_again += sum(again.values()) - len(again)
                model, _ = problem(METHODS[name])
                assert all(check.ok for check in verify(out / "submission.zip", N_CHECKPOINTS, model.state_dict()))
            if sum(runs.values()) % 10 == 0:
                print(f"{sum(kills.values())} kills in {sum(runs.values())} runs, {len(faults)} faults", flush=True)
        results = {
            "kills": dict(kills),
            "kills_in_all": sum(kills.values()),
            "runs": dict(runs),
            "uninterrupted_s": whole_s,
            "reached": dict(reached),
            "archives_equal_to_the_uninterrupted": len(made_again),
            "finished_checkpoints_lost": lost,
            "finished_checkpoints_made_twice": sum(made_again),
            "killed_between_their_line_in_the_ledger_and_their_file": begun_again - sum(made_again),
            "faults": faults,
        }
    print(json.dumps(results, indent=1))
    record("kills", rounded(results), sys.argv)


if __name__ == "__main__":
    main()
