"""What storing checkpoints in fewer bits does to the score: the same checkpoints as float32, float16 and bfloat16.

python -m benchmarks.bench_float16 SOURCE [--n-models 64] [--methods finetune,random_perturbation]

SOURCE: as for local_eval, such as cifar10. The setting and the methods' hyper-parameters are those of
benchmarks.bench_methods; each method emits one float32 archive, whose tensors are then stored in the other types as
`emit(dtype=...)` stores them. Writes results/float16.json. --work-dir keeps models between runs.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.bench_sweeps import cifar_options, open_cifar, recorded
from benchmarks.record import record, rounded
from kit.archive import pack, serialize
from kit.competition import TensorLoader
from kit.emit import emit
from kit.methods import get_method
from kit.tools.verify import open_archive, read_bounded
from local_eval.archived import fill_from_archive
from local_eval.assess import assess
from local_eval.devices import begin_processes, devices_of
from local_eval.evaluate import evaluate, read_samples
from local_eval.retrained import fill_retrained

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def restored(archive: Path, path: Path, dtype: torch.dtype) -> Path:
    """The checkpoints of `archive` in another type."""
    with open_archive(archive) as file:
        members = file.infolist()
        states = read_bounded(file, members, max(info.file_size for info in members))
        pack(path, (io.BytesIO(serialize(state, dtype)) for _, state in states))
    return path


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cifar_options(parser)
    parser.add_argument("--n-models", type=int, default=64)
    parser.add_argument("--methods", default="finetune,random_perturbation")
    options = parser.parse_args(argv[1:])
    n_models = options.n_models
    begin_processes(devices_of())
    workspace = open_cifar("random", options)
    fill_retrained(workspace, n_models)
    best = {name: found["best"] for name, found in recorded("random").items()}
    results = {"n_models": n_models}
    for name in options.methods.split(","):
        with tempfile.TemporaryDirectory() as folder:
            emission = emit(
                get_method(name, best[name]),
                workspace.original(),
                workspace.loaders(TensorLoader),
                out=Path(folder),
                n_checkpoints=n_models,
            )
            archives = {"float32": emission.archive}
            for kind, dtype in DTYPES.items():
                archives[kind] = restored(emission.archive, Path(folder) / f"{kind}.zip", dtype)
            sizes = {kind: path.stat().st_size / n_models for kind, path in archives.items()}
            pools = {kind: fill_from_archive(workspace, path) for kind, path in archives.items()}
        samples = read_samples(workspace, pools, n_models)
        rows = {row.name: row for row in evaluate(samples)}
        _, above = assess(samples, progress=True)
        exact = samples.methods["float32"].confidence
        results[name] = {
            "settings": best[name],
            "stored": {
                kind: {
                    "bytes": sizes[kind],
                    "score": rows[kind].score,
                    "score_ratio": rows[kind].score / rows["float32"].score,
                    "mean_epsilon": rows[kind].mean_epsilon,
                    "retain_accuracy": rows[kind].retain_accuracy,
                    "test_accuracy": rows[kind].test_accuracy,
                    "confidence_moved_median": float(np.median(np.abs(samples.methods[kind].confidence - exact))),
                    "confidence_spread_median": float(np.median(samples.methods[kind].confidence.std(0))),
                }
                for kind in pools
            },
            "probability_above": {f"{a} above {b}": p for (a, b), p in above.items()},
        }
        print(name, rounded(results[name]["stored"]), flush=True)
    print(record("float16", rounded(results), [argv[0], "SOURCE"]))


if __name__ == "__main__":
    main(sys.argv)
