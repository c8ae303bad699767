"""SSSE on a ResNet-20 that forgets one class: accuracies against eps, single gradients and mini-batches of 10.

python -m benchmarks.seeds.ssse_resnet20 SOURCE            SOURCE as for local_eval, such as cifar10
python -m benchmarks.seeds.ssse_resnet20 SOURCE --quick    few images, one epoch, nothing recorded

Figure 2 of Peste, Alistarh and Lampert 2021: a ResNet-20 without data augmentation, trained by SGD with momentum; the
Fisher information in blocks of 70,000 parameters; for each of the first five classes the model retrained without it
from the same seed. The differences of accuracy between the single step and the retrained model, on the class and on
the others, on training and test images. Smaller than the paper's: 10,000 training images, and the Fisher information
of single gradients from 1,000 of them (mini-batches: all 10,000). Writes results/seeds_ssse_resnet20.json and .png.
"""

import argparse
import copy
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

import data_stubs
from benchmarks.record import RESULTS, record, rounded
from data_stubs import Part
from kit.archive import serialize
from kit.competition import TensorLoader
from kit.device import device_of
from kit.fisher.inverse import inverse_product
from kit.methods.shared.schedules import one_cycle
from kit.seeds import seed_everything
from kit.training import fused, train
from local_eval.devices import begin_processes, devices_of
from local_eval.engines import run_all
from local_eval.inference import native_bfloat16, predict
from local_eval.models import resnet20
from local_eval.setting import as_dataset

CLASSES = (0, 1, 2, 3, 4)
ORIGINAL = -1  # job that trains on everything
EPSILONS = tuple(float(f"{eps:.3g}") for eps in np.logspace(-5, 0, 16))
BLOCK = 70_000
DAMPING = 1e-4
N_SINGLE, BATCH = 1000, 10
N_MEASURED = 2000  # training and test images that accuracies are measured on


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--n-train", type=int, default=10_000)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(argv[1:])
    if options.quick:
        options.n_train, options.epochs = 1000, 1
    start = time.perf_counter()
    begin_processes(devices := devices_of())
    loaded = data_stubs.load_source(options.source, n_train=options.n_train)
    with tempfile.TemporaryDirectory() as folder:
        setup = partial(trainer, options.source, options.n_train, options.epochs, Path(folder))
        run_all(setup, [ORIGINAL, *CLASSES], devices, description="training")
        seconds = {"training": round(time.perf_counter() - start, 1)}
        nets = {job: load(Path(folder), job) for job in (ORIGINAL, *CLASSES)}
    parts = {"train": some(loaded.train), "test": some(loaded.test)}
    accuracy = {job: accuracies(net, parts) for job, net in nets.items()}
    print("accuracy of each class, original:", {name: a.round(3).tolist() for name, a in accuracy[ORIGINAL].items()})
    curves = {}
    for form, (n_gradients, size) in {
        "single gradients": (min(N_SINGLE, options.n_train), 1),
        "mini-batches of 10": (options.n_train // BATCH, BATCH),
    }.items():
        began = time.perf_counter()
        steps = ssse_steps(nets[ORIGINAL], loaded.train, n_gradients, size)
        seconds[f"steps, {form}"] = round(time.perf_counter() - began, 1)
        curves[form] = [differences(nets[ORIGINAL], steps[label], parts, accuracy[label], label) for label in CLASSES]
        seconds[f"evaluation, {form}"] = round(time.perf_counter() - began - seconds[f"steps, {form}"], 1)
    results = {
        "n_train": options.n_train,
        "epochs": options.epochs,
        "classes": [loaded.class_names[label] for label in CLASSES],
        "damping": DAMPING,
        "original_accuracy": {name: float(a.mean()) for name, a in accuracy[ORIGINAL].items()},
        "epsilons": list(EPSILONS),
        "by_form": {form: summary(found) for form, found in curves.items()},
        "seconds": seconds,
    }
    for form, found in results["by_form"].items():
        print(form, found["best"], seconds)
    if not options.quick:
        print(record("seeds_ssse_resnet20", rounded(results), [argv[0], "SOURCE", *argv[2:]]))
        print(plot(results))


def trainer(source: str, n_train: int, epochs: float, folder: Path, device: str):
    """The job that trains on everything, or on all but one class, always from one seed."""
    train_part = data_stubs.load_source(source, n_train=n_train, progress=False).train

    def job(label: int) -> int:
        part = train_part if label == ORIGINAL else train_part.take(np.flatnonzero(train_part.labels != label))
        seed_everything(0)
        net = resnet20(10).to(device)
        loader = TensorLoader(as_dataset(part).to(device), batch_size=64, shuffle=True)
        optimizer = fused(torch.optim.SGD, net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
        precision = native_bfloat16(device_of(net))
        n_steps = round(epochs * len(loader))
        train(net, loader, n_steps, optimizer, schedule=one_cycle(warm_up=0.2), autocast_dtype=precision)
        (folder / f"{label}.pth").write_bytes(serialize(net.state_dict()))
        return label

    return job


def load(folder: Path, job: int) -> nn.Module:
    net = resnet20(10)
    net.load_state_dict(torch.load(folder / f"{job}.pth", weights_only=True))
    return net.eval()


def some(part: Part) -> Part:
    """The images that accuracies are measured on: there are 166 nets to measure."""
    rows = np.random.default_rng(1).permutation(len(part))[:N_MEASURED]
    return part.take(np.sort(rows))


def accuracies(net: nn.Module, parts: dict[str, Part]) -> dict[str, np.ndarray]:
    """Of each class in each part, (n_classes,)."""
    found = {}
    for name, part in parts.items():
        logits = predict(net, batches(part, 500), autocast_dtype=native_bfloat16(device_of(net)))
        right = logits.argmax(1).numpy() == part.labels
        found[name] = np.array([right[part.labels == label].mean() for label in range(10)])
    return found


def batches(part: Part, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images, labels = torch.tensor(part.images).float(), torch.tensor(part.labels)
    return list(zip(images.split(size), labels.split(size), strict=True))


def ssse_steps(net: nn.Module, part: Part, n_gradients: int, size: int) -> dict[int, list[torch.Tensor]]:
    """Label -> the step at eps = 1 of forgetting it, 1/(n - k) F^-1 (sum of its gradients), one tensor a parameter."""
    rows = np.random.default_rng(0).permutation(len(part))[: n_gradients * size]
    gradients = torch.stack([flat_gradient(net, batch) for batch in batches(part.take(rows), size)])
    forgotten = {label: np.flatnonzero(part.labels == label) for label in CLASSES}
    sums = torch.stack(
        [sum(len(b[1]) * flat_gradient(net, b) for b in batches(part.take(rows), 500)) for rows in forgotten.values()]
    )
    moved = inverse_product(gradients, sums, DAMPING, BLOCK)
    shapes = [p.shape for p in net.parameters()]
    sizes = [shape.numel() for shape in shapes]
    return {
        label: [flat.view(shape) for flat, shape in zip((v / (len(part) - len(k))).split(sizes), shapes, strict=True)]
        for (label, k), v in zip(forgotten.items(), moved, strict=True)
    }


def flat_gradient(net: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Gradient of the mean loss of a batch in all parameters, in evaluation mode."""
    loss = nn.functional.cross_entropy(net(batch[0]), batch[1])
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])


def differences(net, step, parts, retrained: dict[str, np.ndarray], label: int) -> dict[str, list[float]]:
    """At each eps: |accuracy - the retrained model's| on the class and on the others, on training and test images."""
    others = np.arange(10) != label
    found = {f"{name}, {who}": [] for name in parts for who in ("the class", "the others")}
    for eps in EPSILONS:
        moved = copy.deepcopy(net)
        with torch.no_grad():
            for parameter, s in zip(moved.parameters(), step, strict=True):
                parameter.add_(s, alpha=eps)
        for name, values in accuracies(moved, parts).items():
            apart = values - retrained[name]
            found[f"{name}, the class"].append(abs(float(apart[label])))
            found[f"{name}, the others"].append(abs(float(apart[others].mean())))
    return found


def summary(found: list[dict[str, list[float]]]) -> dict:
    """Mean and standard deviation over the classes; best: the eps with the smallest mean difference."""
    stacked = {name: np.array([curve[name] for curve in found]) for name in found[0]}
    mean = {name: values.mean(axis=0) for name, values in stacked.items()}
    best = int(np.mean(list(mean.values()), axis=0).argmin())
    return {
        "best": {"eps": EPSILONS[best], **{name: float(values[best]) for name, values in mean.items()}},
        "mean": {name: values.tolist() for name, values in mean.items()},
        "sd": {name: values.std(axis=0).tolist() for name, values in stacked.items()},
    }


def plot(results: dict) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.9), layout="constrained", sharey=True)
    x = results["epsilons"]
    looks = {"the class": ("#d55e00", "o-"), "the others": ("#0072b2", "^-")}
    for axis, (form, found) in zip(axes, results["by_form"].items(), strict=True):
        for name, mean in found["mean"].items():
            part, who = name.split(", ")
            colour, mark = looks[who]
            mean, sd = 100 * np.array(mean), 100 * np.array(found["sd"][name])
            hollow = {"markerfacecolor": "white", "linestyle": "--"} if part == "test" else {}
            axis.plot(x, mean, mark, color=colour, label=name, markersize=4, **hollow)
            axis.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.12, linewidth=0)
        axis.set(xscale="log", xlabel="eps", title=form, ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="|accuracy - the retrained model's|, points")
    axes[0].legend(fontsize=8)
    path = RESULTS / "seeds_ssse_resnet20.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


if __name__ == "__main__":
    main(sys.argv)
