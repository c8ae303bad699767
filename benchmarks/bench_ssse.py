"""SSSE's step: products with the inverse Fisher through inner products of gradients, against the paper's recursion.

python -m benchmarks.bench_ssse              about a quarter of an hour on two cores
python -m benchmarks.bench_ssse --quick      small sizes, nothing recorded

Writes results/ssse.json: gradients written out, at several sizes, in one run with the recursion; one block of the
paper's size; and all of a ResNet-18 in one block without writing its gradients out, each in a process of its own for
its peak of memory.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.record import record, rounded
from kit.competition import resnet18
from kit.fisher.diagonal import gradient_sum
from kit.fisher.inverse import inverse_product
from kit.fisher.streamed import streamed_inverse_product

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from reference_fisher import recursive_inverse

DAMPING = 1e-2


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing recorded")
    parser.add_argument("--whole", nargs=2, type=int, metavar=("GRADIENTS", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv[1:])
    torch.set_num_threads(options.threads)
    if options.whole:
        print(json.dumps(whole_network(*options.whole)))
        return
    against = [(300, 50)] if options.quick else [(2000, 500), (8000, 500)]
    block = (2000, 100) if options.quick else (70_000, 2000)
    whole = [(64, 1), (8, 10)] if options.quick else [(1000, 1), (2500, 1), (5000, 1), (500, 10), (2500, 10)]
    results = {
        "threads": options.threads,
        "against_the_recursion": [against_the_recursion(*size) for size in against],
        "one_block": one_block(*block),
        "whole_resnet18": [in_child(*size, options.threads) for size in whole],
    }
    results = rounded(results)
    print(json.dumps(results, indent=1))
    if not options.quick:
        print(record("ssse", results, argv))


def sample(d: int, m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(m, d, dtype=dtype), torch.randn(d, dtype=dtype)


def against_the_recursion(d: int, m: int) -> dict:
    """Both in float64 on the same gradients; the recursion builds F^-1 (d x d) and multiplies."""
    gradients, vector = sample(d, m, torch.float64)
    start = time.perf_counter()
    expected = recursive_inverse(gradients, DAMPING) @ vector
    recursion_s = time.perf_counter() - start
    seconds, found = best_time(lambda: inverse_product(gradients, vector, DAMPING), 5)
    return {
        "d": d,
        "m": m,
        "recursion_s": recursion_s,
        "inner_products_s": seconds,
        "times_faster": recursion_s / seconds,
        "relative_difference": relative(found, expected),
    }


def one_block(d: int, m: int) -> dict:
    """In float32, and how far that is from float64."""
    gradients, vector = sample(d, m, torch.float32)
    seconds, found = best_time(lambda: inverse_product(gradients, vector, DAMPING), 2)
    seconds_float64, exact = best_time(lambda: inverse_product(gradients.double(), vector.double(), DAMPING), 1)
    return {
        "d": d,
        "m": m,
        "seconds": seconds,
        "seconds_float64": seconds_float64,
        "relative_difference": relative(found.double(), exact),
    }


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def best_time(job, n_runs: int) -> tuple[float, Tensor]:
    best = float("inf")
    for _ in range(n_runs):
        start = time.perf_counter()
        found = job()
        best = min(best, time.perf_counter() - start)
    return best, found


def whole_network(m: int, size: int) -> dict:
    """F^-1 v over all 11,181,642 parameters, v the gradient of up to 500 of F's images."""
    torch.manual_seed(0)
    net = resnet18().eval()
    images = torch.randint(0, 256, (m * size, 3, 32, 32), dtype=torch.uint8).float()
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (m * size,))
    forget = zip(images[:500].split(64), labels[:500].split(64), strict=True)
    vectors = {name: total[None] for name, total in gradient_sum(net, forget).items()}
    start = time.perf_counter()
    product = streamed_inverse_product(net, images, labels, vectors, DAMPING, size=size)
    seconds = time.perf_counter() - start
    assert all(torch.isfinite(tensor).all() for tensor in product.values())
    return {
        "gradients": m,
        "images_in_each": size,
        "seconds": seconds,
        "written_out_gb": m * sum(tensor.numel() for tensor in product.values()) * 4 / 1e9,
        "peak_gb": peak_bytes() / 1e9,
    }


def peak_bytes() -> int:
    """The most memory this process held; ru_maxrss would count what its parent held when it started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def in_child(m: int, size: int, threads: int) -> dict:
    command = [sys.executable, "-m", "benchmarks.bench_ssse", "--whole", str(m), str(size), "--threads", str(threads)]
    root = Path(__file__).parent.parent
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root).stdout)


if __name__ == "__main__":
    main(sys.argv)
