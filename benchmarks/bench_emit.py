"""What emission costs beyond the method's arithmetic, and how it compares with the starter's loop.

Overhead: one process, 64 smallconv checkpoints inside a limit; everything but the time inside the method's own call.
Against the starter: its loop as it stands (one process with all cores, a DataLoader over items decoded once, a file per
checkpoint, then `zip`) and ours (a process a core with one thread each, data in one tensor), the same fine-tuning, in
turn; the ratio is the median of the rounds, as a shared machine's speed changes within minutes.
Writing: float16 ResNet-18 checkpoints as files and packed into the archive, against saving and `zip`, and a raw write
of the same bytes; all through the page cache, one after the other.

python -m benchmarks.bench_emit [--n 64] [--rounds 3] [--n-starter 8] [--n-resnet 6] [--n-written 512] [--n-zipped 32]
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.record import record, rounded
from kit.archive import pack, serialize
from kit.budget import TimeBudget
from kit.checkpoint import checkpoint_path, write_checkpoint
from kit.competition import ExampleDataset, Loaders, TensorLoader, make_loaders
from kit.emit import emit
from kit.methods import get_method, method_of
from local_eval.models import build


def problem(architecture: str, n_images: int, loader: type[DataLoader]) -> tuple[nn.Module, Loaders]:
    """An untrained net and synthetic images of 32 x 32; the arithmetic asks for no more."""
    generator = torch.Generator().manual_seed(1)

    def part(n: int) -> ExampleDataset:
        images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return ExampleDataset(images, torch.randint(0, 10, (n,), generator=generator))

    sets = part(n_images), part(100), part(100)
    return build(architecture, 10, seed=0), make_loaders(*sets, batch_size=64, loader=loader)


def overhead(n: int, n_images: int, folder: Path) -> dict[str, Any]:
    """Seconds of a whole emission in one process, and of those inside the method."""
    torch.set_num_threads(1)
    model, loaders = problem("smallconv", n_images, TensorLoader)
    plain, inside = get_method("finetune").function, [0.0]

    def unlearn(net, retain, forget, validation, *, seed, plan=None):
        start = time.perf_counter()
        result = plain(net, retain, forget, validation, seed=seed, plan=plan)
        inside.append(time.perf_counter() - start)
        return result

    unlearn(build("smallconv", 10), *loaders, seed=0)  # torch imports half of itself at the first optimiser
    start = time.perf_counter()
    budget = TimeBudget("8h")
    result = emit(method_of(unlearn), model, loaders, out=folder, n_checkpoints=n, budget=budget, progress=False)
    seconds = time.perf_counter() - start
    assert result.faults == []
    method_s = sum(inside[-n:])  # what was spent on measuring the speed is overhead, too
    return {"checkpoints": n, "seconds": seconds, "in_the_method_s": method_s, "overhead": 1 - method_s / seconds}


def starter(architecture: str, n: int, n_images: int, folder: Path) -> float:
    """Seconds a checkpoint of the starter's loop: as its notebook does it, with the archive made at the end."""
    torch.set_num_threads(os.cpu_count() or 1)
    model, loaders = problem(architecture, n_images, DataLoader)
    original, device = folder / "original_model.pth", torch.device("cpu")
    torch.save(model.state_dict(), original)
    (folder / "tmp").mkdir()
    start = time.perf_counter()
    for index in range(n):
        net = build(architecture, 10)
        net.load_state_dict(torch.load(original))
        criterion = nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1)
        net.train()
        for sample in loaders.retain:
            inputs, targets = sample["image"].to(device), sample["age_group"].to(device)
            optimizer.zero_grad()
            criterion(net(inputs), targets).backward()
            optimizer.step()
        scheduler.step()
        net.eval()
        torch.save(net.state_dict(), folder / f"tmp/unlearned_checkpoint_{index}.pth")
    _zip(folder / "tmp", folder / "submission.zip")
    return (time.perf_counter() - start) / n


def _zip(folder: Path, archive: Path) -> None:
    if shutil.which("zip"):
        subprocess.run(["zip", "-q", "-r", str(archive), "."], cwd=folder, check=True)
    else:
        shutil.make_archive(str(archive.with_suffix("")), "zip", folder)


def _problem(architecture: str, n_images: int, device: str) -> tuple[nn.Module, Loaders]:
    return problem(architecture, n_images, TensorLoader)


def ours(architecture: str, n: int, n_images: int, settings: list[str], folder: Path) -> dict[str, float]:
    """Seconds a checkpoint of an emission with a process a core, its check included, and those of starting up."""
    torch.set_num_threads(1)
    method, devices = get_method("finetune", settings), ["cpu"] * (os.cpu_count() or 1)
    given = partial(_problem, architecture, n_images)
    model, loaders = given("cpu")

    def whole_s(n: int) -> float:
        start = time.perf_counter()
        out = folder / str(n)
        result = emit(method, model, loaders, out=out, n_checkpoints=n, devices=devices, problem=given, progress=False)
        assert result.faults == []
        return time.perf_counter() - start

    few = len(devices)  # one a process: starting up, as imports are above, is no part of a checkpoint
    few_s, n_s = whole_s(few), whole_s(few + n)
    return {"checkpoint_s": (n_s - few_s) / n, "start_up_s": few_s - (n_s - few_s) / n * few}


def writing(n: int, n_zipped: int, folder: Path) -> dict[str, float]:
    """Seconds a checkpoint: raw write, file and archive as an emission makes them, and saving with `zip`."""
    torch.set_num_threads(1)
    net = build("resnet18", 10, seed=0)
    state = net.state_dict()
    data = serialize(state, torch.float16)

    def timed(task: Callable[[], None]) -> float:
        os.sync()
        start = time.perf_counter()
        task()
        return time.perf_counter() - start

    def raw() -> None:
        with (folder / "raw").open("wb") as file:
            for _ in range(n):
                file.write(data)

    def archive() -> None:
        for index in range(n):
            write_checkpoint(folder, folder / "ledger.jsonl", torch.float16, index, net)
        pack(folder / "submission.zip", (checkpoint_path(folder, index).open("rb") for index in range(n)))

    def saved() -> None:
        (folder / "saved").mkdir()
        for index in range(n_zipped):
            half = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
            torch.save(half, folder / f"saved/unlearned_checkpoint_{index}.pth")
        _zip(folder / "saved", folder / "zipped.zip")

    raw_s = timed(raw) / n
    (folder / "raw").unlink()
    archive_s = timed(archive) / n
    for path in [folder / "submission.zip", *folder.glob("*.pth")]:
        path.unlink()
    zip_s = timed(saved) / n_zipped
    return {
        "megabytes_each": len(data) / 1e6,
        "written": n,
        "zipped": n_zipped,
        "raw_write_ms": 1000 * raw_s,
        "archive_ms": 1000 * archive_s,
        "save_and_zip_ms": 1000 * zip_s,
        "faster_than_save_and_zip": zip_s / archive_s,
        "slower_than_a_raw_write": archive_s / raw_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--n-images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3, help="starter and ours in turn; 0: without them")
    parser.add_argument("--n-starter", type=int, default=8)
    parser.add_argument("--n-resnet", type=int, default=6)
    parser.add_argument("--n-written", type=int, default=512)
    parser.add_argument("--n-zipped", type=int, default=32)
    options = parser.parse_args()
    results: dict[str, Any] = {"load_average": {}}

    def part(name: str, task: Callable[[Path], Any]) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            results["load_average"][name] = os.getloadavg()[0]
            found = task(Path(folder))
        print(f"{name}: {rounded(found)}", flush=True)
        return found

    n, n_images = options.n, options.n_images
    results["overhead"] = part("overhead", lambda f: overhead(n, n_images, f))
    for architecture, n_ours, n_theirs, images in (
        (
            ("smallconv", n, options.n_starter, n_images),
            ("resnet18", options.n_resnet, options.n_resnet // 2, 512),
        )
        if options.rounds
        else ()
    ):
        rounds = [
            {
                "starter_s": part(f"{architecture}, starter", partial(starter, architecture, n_theirs, images)),
                **{
                    name: part(f"{architecture}, {name}", partial(ours, architecture, n_ours, images, settings))
                    for name, settings in (("float32", []), ("bfloat16", ["bfloat16=true"]))
                },
            }
            for _ in range(options.rounds)
        ]
        results[architecture] = {"images": images, "rounds": rounds}
        for name in ("float32", "bfloat16"):
            ratios = [found["starter_s"] / found[name]["checkpoint_s"] for found in rounds]
            results[architecture][f"{name}_ratio"] = {
                "median": statistics.median(ratios),
                "least": min(ratios),
                "most": max(ratios),
            }
    results["writing"] = part("writing", partial(writing, options.n_written, options.n_zipped))
    record("emit" if options.rounds else "emit_overhead", rounded(results), sys.argv)


if __name__ == "__main__":
    main()
