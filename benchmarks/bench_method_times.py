"""Time of a checkpoint of each method as a multiple of the starter's fine-tuning, on one net and one set of images.

python -m benchmarks.bench_method_times [--rounds 5] [--n-images 2000] [--architecture smallconv] [--only NAME,NAME]

One process with one thread; the net is untrained and the images are noise, as the arithmetic asks for no more. The
starter's fine-tuning (one epoch of SGD, as `finetune` by default) has its turn right before each method's in every
round, and the ratio is the median of the rounds: a shared machine's speed changes within minutes. Of a mixture each
component is timed, and they are weighed by their shares. Writes results/method_times.json, but not with --only.
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from benchmarks.bench_emit import problem
from benchmarks.record import record, rounded
from kit.checkpoint import unlearn_once
from kit.competition import N_CHECKPOINTS, Loaders, TensorLoader
from kit.device import reproducible
from kit.errors import InputError, first_line
from kit.memory import keep_freed_memory
from kit.methods import Method, get_method
from kit.plan import Plan
from local_eval.leaderboard import Entrant, entrants


def seconds_of(method: Method, model: nn.Module, loaders: Loaders, index: int) -> float:
    """Of checkpoint `index`."""
    start = time.perf_counter()
    unlearn_once(method, model, loaders, seed=0, index=index, plan=Plan())
    return time.perf_counter() - start


def shares(method: Method) -> dict[int, float]:
    """The first checkpoint of each component -> its part of 512; of a plain method of all."""
    turns = [method.component_of(index) for index in range(N_CHECKPOINTS)]
    return {turns.index(part): n / N_CHECKPOINTS for part, n in sorted(Counter(turns).items())}


def timed(
    chosen: Sequence[Entrant], model: nn.Module, loaders: Loaders, n_rounds: int
) -> dict[str, Mapping[str, float | str | list[float]]]:
    """Name -> median seconds, those of the starter beside it, and the median ratio with the ratios of all rounds; of a
    method that does not work here the reason."""
    starter, found = get_method("finetune"), {}
    pairs: dict[str, list[tuple[float, float]]] = {entrant.name: [] for entrant in chosen}
    for method in [starter, *(entrant.method for entrant in chosen)]:  # first steps import and allocate
        for index in shares(method):
            try:
                unlearn_once(method, model, loaders, seed=0, index=index, plan=Plan(2))
            except InputError as error:
                found |= {one.name: {"fault": first_line(error)} for one in chosen if one.method is method}
    for _ in range(n_rounds):
        for entrant in chosen:
            if entrant.name not in found:
                base = seconds_of(starter, model, loaders, 0)
                parts = shares(entrant.method).items()
                own = sum(share * seconds_of(entrant.method, model, loaders, index) for index, share in parts)
                pairs[entrant.name].append((own, base))
    for name, measured in pairs.items():
        if measured:
            own, base = zip(*measured, strict=True)
            ratios = [a / b for a, b in measured]
            medians = map(statistics.median, (own, base, ratios))
            found[name] = dict(zip(("seconds", "starter_s", "ratio"), medians, strict=True)) | {"ratios": ratios}
    return {entrant.name: found[entrant.name] for entrant in chosen}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--n-images", type=int, default=2000)
    parser.add_argument("--architecture", default="smallconv")
    parser.add_argument("--only", help="as `local_eval leaderboard --methods` takes them; nothing is recorded")
    options = parser.parse_args(argv[1:])
    torch.set_num_threads(1)
    keep_freed_memory()
    model, loaders = problem(options.architecture, options.n_images, TensorLoader)
    with reproducible():
        found = timed(entrants(options.only), model, loaders, options.rounds)
    for name, row in sorted(found.items(), key=lambda item: item[1].get("ratio", 0.0)):
        print(f"{name}: {row['fault']}" if "fault" in row else f"{name}: {row['ratio']:.2f} x, {row['seconds']:.2f} s")
    results = {
        "architecture": options.architecture,
        "n_images": options.n_images,
        "n_forget": len(loaders.forget.dataset),
        "rounds": options.rounds,
        "methods": found,
    }
    if not options.only:
        print(record("method_times", rounded(results), list(argv)))
    return int(any("fault" in row for row in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
