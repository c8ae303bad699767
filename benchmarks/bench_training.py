"""Training on a CPU: a process a core as pools are made, against one plain process with a DataLoader.

python -m benchmarks.bench_training [--images 2048] [--rounds 3]

The same net and batch, in turns; ours with its recipe as it stands (`fast` trains a third of its steps at half the
resolution), the plain loop with an optimiser of torch, at full resolution, once with a thread a core and once with one
thread, since threads that wait for each other can be the slower form. Images a second of all processes together,
medians of the rounds; and what they are of the rate of a large convolution on all cores, in floating-point operations
as torch counts them. Writes results/training.json.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import record, rounded
from kit.competition import ExampleDataset
from local_eval.engines import run_all
from local_eval.inference import native_bfloat16
from local_eval.models import build
from local_eval.recipes import get_recipe

# Net: recipe, batch, the plain loop's optimiser.
NETS = {
    "smallconv": ("fast", 128, partial(torch.optim.SGD, lr=0.01, momentum=0.9)),
    "resnet18_narrow": ("competition-narrow", 64, partial(torch.optim.Adam, lr=4e-4, weight_decay=0.02)),
}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv[1:])
    began, load = time.perf_counter(), os.getloadavg()[0]
    results = {"load_before": load, "cores": os.cpu_count(), "convolution_flops_per_s": convolution_rate()}
    for name in NETS:
        ways = {
            "images_per_s": ours,
            "plain_images_per_s": partial(plain, n_threads=os.cpu_count()),
            "plain_images_per_s_one_thread": partial(plain, n_threads=1),
        }
        rounds = [{way: rate(name, options.images) for way, rate in ways.items()} for _ in range(options.rounds)]
        row = {way: statistics.median(found[way] for found in rounds) for way in ways}
        rate, threaded, single = row.values()
        row |= {"times_faster": rate / threaded, "times_faster_than_one_thread": rate / single}
        row["share_of_convolution_rate"] = rate * flops_per_image(name) / sum(results["convolution_flops_per_s"])
        results[name] = row | {"rounds": rounds}
        print(
            f"{name}: {rate:.0f} images/s against {threaded:.0f} with {os.cpu_count()} threads "
            f"({rate / threaded:.1f} times) and {single:.0f} with one ({rate / single:.1f} times); "
            f"{row['share_of_convolution_rate']:.0%} of the convolutions' rate",
            flush=True,
        )
    results["seconds"] = time.perf_counter() - began
    print(record("training", rounded(results), argv))


def problem(n_images: int) -> ExampleDataset:
    """Images of 10 classes that can be told apart, so that nothing diverges."""
    labels = torch.arange(n_images) % 10
    noise = torch.randint(0, 100, (n_images, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return ExampleDataset((noise + 15 * labels[:, None, None, None]).to(torch.uint8), labels)


def ours(name: str, n_images: int) -> float:
    """Images a second of a process a core, together."""
    n_processes = os.cpu_count()
    found = run_all(partial(trainer, name, n_images), range(n_processes), ["cpu"] * n_processes, progress=False)
    return sum(found.values())


def trainer(name: str, n_images: int, device: str) -> Callable[[int], float]:
    data, recipe = problem(n_images), get_recipe(NETS[name][0])
    counts = torch.bincount(data.labels)

    def work(number: int) -> float:
        net = build(name, 10, seed=number)
        recipe.fit(net, ExampleDataset(data.images[:512], data.labels[:512]), 1, counts)
        start = time.perf_counter()
        recipe.fit(net, data, 1, counts)
        return n_images / (time.perf_counter() - start)

    return work


def plain(name: str, n_images: int, n_threads: int) -> float:
    """Images a second of the usual loop in this process."""
    _, batch_size, optimizer_of = NETS[name]
    data = problem(n_images)
    loader = DataLoader(TensorDataset(data.images.float(), data.labels), batch_size, shuffle=True)
    net = build(name, 10, seed=0).train()
    optimizer = optimizer_of(net.parameters())
    torch.set_num_threads(n_threads)
    for warm in (True, False):
        start = time.perf_counter()
        for step, (images, labels) in enumerate(loader):
            if warm and step == 8:
                break
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
    return n_images / (time.perf_counter() - start)


def flops_per_image(name: str) -> float:
    """Of a training step at full resolution, forward and backward."""
    _, batch_size, _ = NETS[name]
    data = problem(batch_size)
    net = build(name, 10, seed=0).train()
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(net(data.images.float()), data.labels).backward()
    return counter.get_total_flops() / batch_size


def convolution_rate() -> list[float]:
    """Operations a second of a large convolution in each of the processes, one a core, all at once: float32, and
    bfloat16 where the processor multiplies it."""
    n_processes = os.cpu_count()
    return list(run_all(convolver, range(n_processes), ["cpu"] * n_processes, progress=False).values())


def convolver(device: str) -> Callable[[int], float]:
    dtype = native_bfloat16(torch.device(device)) or torch.float32
    layer = nn.Conv2d(128, 128, 3, padding=1).to(dtype=dtype, memory_format=torch.channels_last)
    images = torch.randn(64, 128, 16, 16).to(dtype=dtype, memory_format=torch.channels_last)

    @torch.no_grad()
    def work(number: int) -> float:
        layer(images)
        start, n_passes = time.perf_counter(), 30
        for _ in range(n_passes):
            layer(images)
        return 2 * n_passes * 64 * 16 * 16 * 128 * 128 * 9 / (time.perf_counter() - start)

    return work


if __name__ == "__main__":
    main(sys.argv)
