"""SSSE on a convex problem: a linear multi-attribute classifier with L2, parts of one attribute's examples removed.

python -m benchmarks.seeds.ssse_convex SOURCE            about five minutes on two cores; SOURCE as for local_eval
python -m benchmarks.seeds.ssse_convex SOURCE --quick    fewer images and attributes, nothing recorded

Figure 1 of Peste, Alistarh and Lampert 2021 with CIFAR-10 in the place of CelebA: 128 features of a net trained on
10,000 other images, 22 binary attributes of the image (its class, groups of classes, brightness, contrast, tint),
lambda = 1e-4, no bias. For each attribute of at most 20% of the images and each removal ratio, the model without the
removed examples is found by Newton's method and compared with the single step
w* + eps / (n - k) * F^-1 * (sum of the removed gradients). Writes results/seeds_ssse_convex.json and .png.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit
from tqdm import tqdm

import data_stubs
from benchmarks.record import RESULTS, record
from data_stubs import Part
from kit.seeds import seed_everything
from local_eval.audit.families import auc
from local_eval.models import build
from local_eval.recipes import fit_fast
from local_eval.setting import as_dataset

LAMBDA = 1e-4
RATIOS = (0.1, 0.25, 0.5, 0.75, 1.0)
EPSILONS = np.logspace(-2, 2, 41)
RARE = 0.205  # at most 20% of the images, and a little for uneven samples
GROUPS = {
    "animal": ("bird", "cat", "deer", "dog", "frog", "horse"),
    "flies": ("airplane", "bird"),
    "hoofed": ("deer", "horse"),
    "pet": ("cat", "dog"),
    "road": ("automobile", "truck"),
    "water": ("ship", "frog"),
}
TOP = 0.15  # share of the images that have an attribute of the pixels


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--n-images", type=int, default=20_000)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(argv[1:])
    n_images = 4000 if options.quick else options.n_images
    start = time.perf_counter()
    x, y, names = problem(options.source, n_images)
    found = removals(x, y, most=4 if options.quick else None)
    results = {
        "n_images": len(x),
        "n_features": x.shape[1],
        "lambda": LAMBDA,
        "attributes": {name: round(float(share), 4) for name, share in zip(names, y.mean(axis=0), strict=True)},
        "n_removed_attributes": found["n_attributes"],
        "epsilons": [float(f"{eps:.4g}") for eps in EPSILONS],
        "by_ratio": [summary(ratio, *found[ratio]) for ratio in RATIOS],
        "seconds": round(time.perf_counter() - start, 1),
    }
    for row in results["by_ratio"]:
        print({key: value for key, value in row.items() if not isinstance(value, list)})
    if not options.quick:
        print(record("seeds_ssse_convex", results, [argv[0], "SOURCE", *argv[2:]]))
        print(plot(results))


def problem(source: str, n_images: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Features (n, 128) of unit mean square, attributes (n, n_attributes) of 0 and 1, and the attributes' names."""
    loaded = data_stubs.load_source(source)
    order = np.random.default_rng(0).permutation(len(loaded.train))
    pretrain, rows = order[: len(order) // 5], order[len(order) // 5 :][:n_images]
    net = pretrained(loaded.train.take(pretrain), len(loaded.class_names))
    part = loaded.train.take(rows)
    with torch.no_grad():
        chunks = torch.as_tensor(np.ascontiguousarray(part.images)).split(500)
        x = torch.cat([features(net, images.float()) for images in chunks]).double().numpy()
    columns = {name: part.labels == label for label, name in enumerate(loaded.class_names)}
    for group, members in GROUPS.items():
        columns[group] = np.isin(np.asarray(loaded.class_names)[part.labels], members)
    pixels = part.images.astype(np.float32)
    colour = pixels.mean(axis=(2, 3))
    for name, value in {
        "bright": colour.mean(axis=1),
        "dark": -colour.mean(axis=1),
        "contrast": pixels.std(axis=(1, 2, 3)),
        "red": colour[:, 0] - colour[:, 1:].mean(axis=1),
        "green": colour[:, 1] - colour[:, [0, 2]].mean(axis=1),
        "blue": colour[:, 2] - colour[:, :2].mean(axis=1),
    }.items():
        columns[name] = value > np.quantile(value, 1 - TOP)
    return x / np.sqrt((x**2).mean()), np.stack(list(columns.values()), axis=1).astype(np.float64), list(columns)


def pretrained(part: Part, n_classes: int) -> torch.nn.Module:
    seed_everything(0)
    return fit_fast(build("smallconv", n_classes), as_dataset(part), 6, torch.ones(n_classes)).eval()


def features(net: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the last layer of the net reads."""
    seen = []
    hook = net.fc.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    net(images)
    hook.remove()
    return seen[0]


def optimum(x: np.ndarray, y: np.ndarray, start: np.ndarray, tolerance: float = 1e-10) -> np.ndarray:
    """argmin of mean cross-entropy + lambda/2 |w|^2 for each attribute, (d, n_attributes), by Newton's method."""
    w = start.copy()
    for _ in range(50):
        p = expit(x @ w)
        gradient = x.T @ (p - y) / len(x) + LAMBDA * w
        if np.abs(gradient).max() < tolerance:
            return w
        for a in range(w.shape[1]):
            hessian = (x.T * (p[:, a] * (1 - p[:, a]))) @ x / len(x)
            hessian[np.diag_indices_from(hessian)] += LAMBDA
            w[:, a] -= np.linalg.solve(hessian, gradient[:, a])
    raise RuntimeError("Newton's method did not converge")


def fishers(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The block of each attribute, lambda I + mean of g g^T, (n_attributes, d, d): d is small, so they are dense."""
    residual = expit(x @ w) - y
    blocks = np.stack([(x.T * residual[:, a] ** 2) @ x / len(x) for a in range(w.shape[1])])
    return blocks + LAMBDA * np.eye(x.shape[1])


def removals(x: np.ndarray, y: np.ndarray, most: int | None = None) -> dict:
    """ratio -> similarity ratios and distances in parameter space, (n_attributes, n_epsilons) each."""
    rng = np.random.default_rng(1)
    original = optimum(x, y, np.zeros((x.shape[1], y.shape[1])))
    blocks = fishers(x, y, original)
    rare = np.flatnonzero(y.mean(axis=0) <= RARE)[:most]
    found = {"n_attributes": len(rare)}
    with tqdm(total=len(RATIOS) * len(rare), desc="removing") as bar:
        for ratio in RATIOS:
            curves = []
            for attribute in rare:
                having = rng.permutation(np.flatnonzero(y[:, attribute]))
                removed = np.sort(having[: round(ratio * len(having))])
                curves.append(one_removal(x, y, original, blocks, removed))
                bar.update()
            found[ratio] = tuple(np.stack(values) for values in zip(*curves, strict=True))
    return found


def one_removal(x, y, original, blocks, removed) -> tuple[np.ndarray, np.ndarray]:
    kept = np.setdiff1d(np.arange(len(x)), removed)
    retrained = optimum(x[kept], y[kept], original)
    gradient = x[removed].T @ (expit(x[removed] @ original) - y[removed])
    step = np.stack([np.linalg.solve(block, g) for block, g in zip(blocks, gradient.T, strict=True)], axis=1)
    step /= len(kept)
    of_original, of_retrained = (aucs(x[removed] @ w, y[removed]) for w in (original, retrained))
    ratios, distances = [], []
    for eps in EPSILONS:
        w = original + eps * step
        of_this = aucs(x[removed] @ w, y[removed])
        to_original, to_retrained = (np.abs(of_this - other).sum() for other in (of_original, of_retrained))
        ratios.append(to_original / max(to_original + to_retrained, 1e-300))
        distances.append(np.linalg.norm(w - retrained) / np.linalg.norm(original - retrained))
    return np.array(ratios), np.array(distances)


def aucs(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of each attribute on the removed examples; 0 where all or none of them have it."""
    values = np.zeros(y.shape[1])
    for a in range(y.shape[1]):
        has = y[:, a] == 1
        if has.any() and not has.all():
            values[a] = auc(scores[has][:, [a]], scores[~has][:, [a]])[0]
    return values


def summary(ratio: float, similarity: np.ndarray, distance: np.ndarray) -> dict:
    mean, mean_distance = similarity.mean(axis=0), distance.mean(axis=0)
    best = int(mean.argmax())
    above = EPSILONS[mean >= 0.8]
    return {
        "removed": ratio,
        "best_eps": float(f"{EPSILONS[best]:.4g}"),
        "similarity_at_best": round(float(mean[best]), 4),
        "eps_with_similarity_above_0.8": [float(f"{e:.4g}") for e in (above.min(), above.max())] if len(above) else [],
        "best_eps_by_distance": float(f"{EPSILONS[mean_distance.argmin()]:.4g}"),
        "distance_at_best_similarity": round(float(mean_distance[best]), 4),
        "smallest_distance": round(float(mean_distance.min()), 4),
        "best_eps_of_attributes": [float(f"{e:.4g}") for e in EPSILONS[similarity.argmax(axis=1)]],
        "similarity": [round(float(v), 4) for v in mean],
        "distance": [round(float(v), 4) for v in mean_distance],
    }


def plot(results: dict) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9), layout="constrained")
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(RATIOS)))
    for row, colour in zip(results["by_ratio"], colours, strict=True):
        label = f"{row['removed']:.0%} removed"
        left.plot(results["epsilons"], row["similarity"], color=colour, label=label)
        right.plot(results["epsilons"], row["distance"], color=colour, label=label)
    left.axhline(0.8, color="0.5", linestyle=":", label="the paper's best: above 0.8")
    left.set(xscale="log", xlabel="eps", ylabel="similarity ratio on the removed examples", ylim=(0, 1))
    right.axhline(1, color="0.5", linestyle=":", label="doing nothing")
    right.set(xscale="log", xlabel="eps", ylabel="distance to the retrained weights / the original's", ylim=(0, 2))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path = RESULTS / "seeds_ssse_convex.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


if __name__ == "__main__":
    main(sys.argv)
