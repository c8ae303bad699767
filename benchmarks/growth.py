"""What grows how: measured costs of one model, one file and one score, and from them what large runs would cost.

python -m benchmarks.growth [--images 2000] [--models 64 128 256 512] [--examples 100 800]

Writes results/growth.json. Measured, on the CPU: seconds of a training pass over images, bytes of a checkpoint and of a
model's file in a pool, seconds to score by numbers of models. The rest is arithmetic: those, and how many of this
machine's cores a GPU with its processes is taken to be worth in training (`--gpu-cores`). No GPU was used.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.bench_score import samples
from benchmarks.record import record, rounded
from kit.archive import serialize
from kit.competition import ExampleDataset
from kit.device import reproducible
from kit.memory import keep_freed_memory
from kit.seeds import seed_everything
from local_eval.arrays import judge
from local_eval.models import build
from local_eval.pool import ModelPool
from local_eval.recipes import get_recipe

NETS = {"smallconv": ("fast", 0.01), "resnet18_narrow": ("competition", 1e-4)}  # with recipe and learning rate
GPUS = (1, 8, 64)
_CORES = 2  # that score
# What is made: of each setting one original model and so many retrained and unlearned ones. passes: over the training
# images, of a retrained model and of an unlearned one; images: of the training set; classes and evaluated images fill
# a pool's file.
_COMPETITION_SIZE = {
    "settings": 1,
    "models": 512,
    "architecture": "resnet18_narrow",
    "images": 30_000,
    "passes": (30, 1),
    "evaluated": 600 + 2000 + 3000,
    "forget": 600,
    "classes": 10,
}
PLANS = {
    "512 on CIFAR-10": {
        "settings": 1,
        "models": 512,
        "architecture": "smallconv",
        "images": 50_000,
        "passes": (3, 1),
        "evaluated": 500 + 2000 + 10_000,
        "forget": 500,
        "classes": 10,
    },
    "512 on a set of the competition's size": _COMPETITION_SIZE,
    "100,000 checkpoints over 100 settings": _COMPETITION_SIZE | {"settings": 100, "models": 500},
}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="trained on, once to warm up and twice measured")
    parser.add_argument("--models", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--examples", type=int, nargs=2, default=[100, 800])
    parser.add_argument("--gpu-cores", type=float, default=30, help="cores that a GPU is taken to be worth (30)")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing recorded")
    options = parser.parse_args(argv[1:])
    if options.quick:
        options.images, options.models, options.examples = 64, [8, 16], [8, 16]
    began = time.perf_counter()
    keep_freed_memory()
    with reproducible():
        nets = {name: of_net(name, options.images) for name in NETS}
    few, many = options.examples
    scores = [of_score(n_models, many) for n_models in options.models]
    fewer = of_score(options.models[-1], few)
    each_s = (scores[-1]["cpu_s"] - fewer["cpu_s"]) / (many - few)
    results = {
        "assumed": {"gpu_cores": options.gpu_cores},
        "nets": nets,
        "pool_bytes_per_logit": pool_bytes() / (500 * 10),
        "scores": [fewer, *scores],
        "score_cpu_s": {"an_example": each_s, "besides": fewer["cpu_s"] - few * each_s},
        "score_grows_as_models_to_the": exponent(scores),
    }
    results["plans"] = {name: plan_of(plan, results) for name, plan in PLANS.items()}
    results["seconds"] = time.perf_counter() - began
    results = rounded(results)
    print(json.dumps(results, indent=1))
    if not options.quick:
        print(record("growth", results, argv))


def of_net(name: str, n_images: int) -> dict[str, float]:
    """Seconds of a training pass by one core, size of a checkpoint."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n_images) % 10
    images = torch.randint(0, 100, (n_images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    images += (15 * labels).to(torch.uint8)[:, None, None, None]  # something to learn, so that nothing diverges
    data = ExampleDataset(images, labels)
    seed_everything(0)
    recipe, lr = NETS[name]
    net, fit = build(name, 10), get_recipe(recipe, lr).fit
    counts = torch.full((10,), n_images // 10)
    fit(net, data, 1.0, counts)
    start = time.process_time()
    fit(net, data, 2.0, counts)
    seconds = (time.process_time() - start) / 2
    return {
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "cpu_s_per_1000_images": 1000 * seconds / n_images,
        "checkpoint_mb": len(serialize(net.state_dict())) / 1e6,
    }


def pool_bytes() -> int:
    """Of the file of one model with 500 examples of 10 classes."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        pool = ModelPool(Path(folder) / "pool", {})
        pool.add(0, {"forget": rng.normal(size=(500, 10)).astype(np.float32)}, 1.0)
        return next(pool.folder.glob("model_*.npz")).stat().st_size


def of_score(n_models: int, n_examples: int) -> dict[str, float]:
    """CPU seconds with intervals and all, and of the plain score."""
    u, r = samples(n_models, n_examples)
    judge(u, r, brief=True)
    found = {"n_models": n_models, "n_examples": n_examples}
    for name, options in (("cpu_s", {}), ("brief_cpu_s", {"brief": True})):
        start = cpu_s()
        judge(u, r, **options)
        found[name] = cpu_s() - start
    return found


def cpu_s() -> float:
    """Of this process and of those that it started and that have ended."""
    used = (resource.getrusage(which) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def exponent(scores: list[dict[str, float]]) -> float:
    """Of the number of models in the seconds of the plain score, by a line through the logarithms."""
    models, seconds = ([np.log(row[name]) for row in scores] for name in ("n_models", "brief_cpu_s"))
    return float(np.polyfit(models, seconds, 1)[0])


def plan_of(plan: dict, measured: dict) -> dict:
    """Hours of each part by numbers of GPUs, bytes, and which part takes the longest. Two cores score."""
    net, n_made = measured["nets"][plan["architecture"]], plan["settings"] * plan["models"]
    image_s = net["cpu_s_per_1000_images"] / 1000 / measured["assumed"]["gpu_cores"]
    retrain_h, unlearn_h = (n_made * n * plan["images"] * image_s / 3600 for n in plan["passes"])
    score_s = measured["score_cpu_s"]["besides"] + plan["forget"] * measured["score_cpu_s"]["an_example"]
    score_h = plan["settings"] * score_s / _CORES / 3600
    logits = 2 * n_made * plan["evaluated"] * plan["classes"]
    found = {
        "models": 2 * n_made,
        "pools_gb": logits * measured["pool_bytes_per_logit"] / 1e9,
        "checkpoints_gb": n_made * net["checkpoint_mb"] / 1000,
        "score_h": score_h,
    }
    for n_gpus in GPUS:
        parts = {"retrain": retrain_h / n_gpus, "unlearn": unlearn_h / n_gpus, "score": score_h}
        found[f"{n_gpus} GPUs"] = {**parts, "all_h": sum(parts.values()), "bottleneck": max(parts, key=parts.get)}
    return found


if __name__ == "__main__":
    main(sys.argv)
