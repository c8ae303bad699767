"""Fisher forgetting for a competition-sized input tree: what 512 checkpoints of a ResNet-18 would take.

python -m benchmarks.bench_fisher_forgetting TREE [--measure 3]

TREE: such a tree, for instance of `python -m local_eval tree --source cifar10 --n-train 28000 --forget random:1000
--architecture resnet18 --recipe sgd --epochs 0.3 --out TREE`. Each checkpoint computes a Fisher information of its own:
the retain set in an order of its own, with random signs of its own over all labels. Writes
results/fisher_forgetting.json: the projections of `python -m kit profile`, an archive of two checkpoints made and
verified, how far the Fisher information of two runs differs, and the time for the same arithmetic at a stated speed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import record, rounded
from kit.competition import N_CHECKPOINTS, load_original, read_tree
from kit.fisher.diagonal import estimated_diagonal, every_label
from kit.seeds import checkpoint_seed, seed_everything
from local_eval.inference import native_bfloat16

GPU_FLOP_PER_S = 8e12  # peak in float32 of the cards that the competition ran on
REACHED = (1.0, 0.5, 0.3)  # parts of that peak


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--measure", type=int, default=3)
    options = parser.parse_args(argv[1:])
    model, loaders = load_original(options.tree), read_tree(options.tree, progress=False)
    n_retain = len(loaders[0].dataset)
    forms = ["false", "true"] if native_bfloat16(torch.device("cpu")) else ["false"]
    projected = {}
    for bfloat16 in forms:
        found = kit("profile", options.tree, f"bfloat16={bfloat16}", "--measure", str(options.measure))
        projected["bfloat16" if bfloat16 == "true" else "float32"] = found
    with tempfile.TemporaryDirectory() as folder:
        emitted = kit("emit", options.tree, f"bfloat16={forms[-1]}", "--n-models", "2", "--out", folder)
    flop = checkpoint_flop(model, n_retain)
    results = {
        "n_retain": n_retain,
        "projected": projected,
        "emitted": emitted,
        "fisher_of_two_runs": apart(model, loaders[0], forms[-1] == "true"),
        "tflop_per_checkpoint": flop / 1e12,
        "hours_for_512_at_8_tflop_per_s": {
            f"{part:.0%} of it reached": N_CHECKPOINTS * flop / (part * GPU_FLOP_PER_S) / 3600 for part in REACHED
        },
    }
    results = rounded(results)
    print(json.dumps(results, indent=1))
    print(record("fisher_forgetting", results, [argv[0], "TREE", *argv[2:]]))


def kit(command: str, tree: Path, setting: str, *options: str) -> dict:
    """What `python -m kit COMMAND --method fisher_forgetting` says as JSON."""
    whole = [sys.executable, "-m", "kit", command, "--input", str(tree), "--method", "fisher_forgetting"]
    whole += ["--set", setting, "--dtype", "float16", "--json", "--quiet", *options]
    done = subprocess.run(whole, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent.parent)
    found = json.loads(done.stdout)
    return {name: value for name, value in found.items() if name not in ("archive", "out")}


def checkpoint_flop(model: torch.nn.Module, n_retain: int) -> float:
    """Operations of one checkpoint: a forward and a backward pass, which costs twice as much, over the retain set."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    return 3.0 * counter.get_total_flops() * n_retain


def apart(model: torch.nn.Module, retain_loader, bfloat16: bool) -> dict:
    """How far the estimates of two runs differ, relative to their mean, and what each claims of its own error."""
    found = []
    for index in range(2):
        seed_everything(checkpoint_seed(0, index))
        dtype = torch.bfloat16 if bfloat16 else None
        found.append(estimated_diagonal(model, retain_loader, every_label, autocast_dtype=dtype))
    flat = [torch.cat([tensor.flatten() for tensor in estimate.diagonal.values()]) for estimate in found]
    return {
        "relative_difference": ((flat[0] - flat[1]).norm() / ((flat[0] + flat[1]) / 2).norm()).item(),
        "claimed_relative_error": [estimate.relative_error for estimate in found],
    }


if __name__ == "__main__":
    main(sys.argv)
