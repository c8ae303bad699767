"""Speed and error of the diagonal Fisher information of a ResNet-18 on 32x32 images, every way in one run.

python -m benchmarks.bench_fisher            two to eight minutes on two cores
python -m benchmarks.bench_fisher --quick    few images, nothing recorded

Writes results/fisher.json. Each way is timed in turn, `--rounds` times round, and its fastest time counts; ratios are
to a loop that takes the samples one at a time. The net is one trained for an epoch on procedural images, so that its
outputs are as sure as a real model's.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import data_stubs
from benchmarks.record import record, rounded
from kit.competition import N_CHECKPOINTS, TensorLoader, resnet18
from kit.fisher.diagonal import (
    Named,
    diagonal,
    estimated_diagonal,
    every_label,
    sampled_labels,
    squared_batch_means,
)
from kit.training import fine_tune
from local_eval.inference import native_bfloat16, predict
from local_eval.setting import as_dataset

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from reference_fisher import golatkar_diagonal, loop_diagonal

N_RETAIN = 27_000  # images of the competition's retain set, about


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="few images, nothing recorded")
    options = parser.parse_args(argv[1:])
    if options.quick:
        options.images, options.rounds = 128, 1
    torch.set_num_threads(options.threads)

    net, images, labels = trained_net(options.images)
    pairs = list(zip(images.split(options.batch_size), labels.split(options.batch_size), strict=True))
    n, few, few_batches = len(images), min(48, len(images)), min(2 * options.batch_size, len(images))
    jobs = {
        "loop over samples": (few, lambda: loop_diagonal(net, images[:few], labels[:few])),
        "loop, every label": (4, lambda: golatkar_diagonal(net, images[:4])),
        "vmap of grad": (few, lambda: vmap_diagonal(net, images[:few], labels[:few])),
        "forward and backward": (n, lambda: forward_backward(net, pairs)),
        "exact": (n, lambda: diagonal(net, pairs)),
        "exact, every label": (few_batches, lambda: diagonal(net, pairs[:2], every_label)),
        "estimate": (n, lambda: estimated_diagonal(net, pairs)),
        "estimate, every label": (n, lambda: estimated_diagonal(net, pairs, every_label)),
        "squared batch means": (n, lambda: squared_batch_means(net, pairs)),
    }
    if dtype := native_bfloat16(images.device):
        jobs["estimate, every label, bfloat16"] = (
            n,
            lambda: estimated_diagonal(net, pairs, every_label, autocast_dtype=dtype),
        )
    speed = images_per_second(jobs, options.rounds)
    results = {
        "n_images": n,
        "batch_size": options.batch_size,
        "threads": options.threads,
        "accuracy_of_the_net": (predict(net, pairs).argmax(1) == labels).double().mean().item(),
        "images_per_s": speed,
        "times_the_loop": {name: value / speed["loop over samples"] for name, value in speed.items()},
        "errors": errors(net, pairs, images, labels, dtype),
        "fisher_forgetting": {
            name: {
                "checkpoint_s": N_RETAIN / speed[name],
                f"hours_for_{N_CHECKPOINTS}": N_CHECKPOINTS * N_RETAIN / speed[name] / 3600,
            }
            for name in speed
            if name.endswith("every label") or name.endswith("bfloat16")
        },
    }
    results = rounded(results)
    print(json.dumps(results, indent=1))
    if not options.quick:
        print(record("fisher", results, argv))


def trained_net(n_images: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A ResNet-18 after one epoch on procedural images, and the first of them with labels."""
    train = as_dataset(data_stubs.load("synthetic", forget="random:100", n_train=2048).train)
    torch.manual_seed(0)
    net = resnet18()
    loader = TensorLoader(train, batch_size=64, shuffle=True)
    fine_tune(net, loader, len(loader), lr=0.05)
    images = train.images[:n_images].float().contiguous(memory_format=torch.channels_last)
    return net.eval(), images, train.labels[:n_images]


def vmap_diagonal(net: nn.Module, images: Tensor, labels: Tensor) -> Named:
    """Squared gradients by torch's own vectorisation, eight samples at a time."""
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(values: Named, image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, values, (image[None],)), label[None])

    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for some, theirs in zip(images.split(8), labels.split(8), strict=True):
        for name, gradients in vmap(grad(loss), in_dims=(None, 0, 0))(parameters, some, theirs).items():
            total[name] += gradients.square().sum(0)
    return total


def forward_backward(net: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> None:
    parameters = list(net.parameters())
    for images, labels in pairs:
        torch.autograd.grad(F.cross_entropy(net(images), labels), parameters)


def images_per_second(jobs: dict[str, tuple[int, Callable[[], object]]], n_rounds: int) -> dict[str, float]:
    """Of the fastest of n_rounds, the jobs taking turns; each warms up on its first call where there are more."""
    best = dict.fromkeys(jobs, 0.0)
    for _ in range(n_rounds):
        for name, (n_images, job) in jobs.items():
            start = time.perf_counter()
            job()
            best[name] = max(best[name], n_images / (time.perf_counter() - start))
    return best


def errors(
    net: nn.Module, pairs: list[tuple[Tensor, Tensor]], images: Tensor, labels: Tensor, dtype: torch.dtype | None
) -> dict:
    """Relative distances, all entries together: from the loop for the exact way, from the exact way for the others."""
    few, half = min(32, len(images)), pairs[: len(pairs) // 2 or 1]
    exact, whole = diagonal(net, pairs), diagonal(net, half, every_label)
    torch.manual_seed(1)
    found = {
        "exact": distance(
            diagonal(net, [(images[:few], labels[:few])]), loop_diagonal(net, images[:few], labels[:few])
        ),
        "squared batch means": distance(squared_batch_means(net, pairs), exact),
    }
    for passes in (1, 2, 4, 8):
        estimate = estimated_diagonal(net, pairs, passes=passes)
        found[f"estimate, {passes} passes"] = {
            "error": distance(estimate.diagonal, exact),
            "claimed": estimate.relative_error,
        }
    for rule in (every_label, mixed_labels, sampled_labels):
        runs = [distance(estimated_diagonal(net, half, rule).diagonal, whole) for _ in range(4)]
        found[f"{rule.__name__}, one pass over half of the images"] = sum(runs) / len(runs)
    if dtype:
        torch.manual_seed(2)
        plain = estimated_diagonal(net, pairs).diagonal
        torch.manual_seed(2)
        found["bfloat16 from float32, same signs"] = distance(
            estimated_diagonal(net, pairs, autocast_dtype=dtype).diagonal, plain
        )
    return found


def mixed_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """All labels in one term, sum_y s_y sqrt(p_y) g(y) with random signs s: unbiased for `every_label`, as
    `sampled_labels`. Where the model is sure, that one nearly always draws the label whose gradient vanishes."""
    terms = every_label(logits, labels)
    signs = 2 * torch.randint(0, 2, terms.shape[:2]).to(terms) - 1
    return torch.einsum("tn,tnc->nc", signs, terms)[None]


def distance(found: Named, expected: Named) -> float:
    squares = [((found[name] - tensor).square().sum(), tensor.square().sum()) for name, tensor in expected.items()]
    return (sum(a for a, _ in squares) / sum(b for _, b in squares)).sqrt().item()


if __name__ == "__main__":
    main(sys.argv)
