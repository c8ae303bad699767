"""Plain forms of the Fisher algebra: one sample at a time, dense matrices, the recursion of the SSSE paper."""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def loop_gradients(net: nn.Module, images: Tensor, labels: Tensor) -> Iterator[dict[str, Tensor]]:
    """The gradients of the cross-entropy of each sample, a batch of one at a time, in evaluation mode."""
    net.eval()
    named = {name: p for name, p in net.named_parameters() if p.requires_grad}
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        loss = F.cross_entropy(net(image), label)
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        pairs = zip(named.items(), gradients, strict=True)
        yield {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}


def weighted_squares(rows: Iterable[dict[str, Tensor]], weights: Iterable[float]) -> dict[str, Tensor]:
    """sum_i weight_i g_i^2."""
    total: dict[str, Tensor] = {}
    for row, weight in zip(rows, weights, strict=True):
        for name, gradient in row.items():
            total.setdefault(name, torch.zeros_like(gradient)).addcmul_(gradient, gradient, value=weight)
    return total


def loop_diagonal(net: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The empirical diagonal: mean of the squared gradients."""
    return weighted_squares(loop_gradients(net, images, labels), [1 / len(images)] * len(images))


def golatkar_diagonal(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """mean_i sum_y p_y g_i(y)^2 (Golatkar, Achille and Soatto 2020, supplementary code)."""
    with torch.no_grad():
        p = net.eval()(images).softmax(1)
    n, n_classes = p.shape
    every = torch.arange(n_classes).repeat(n)
    return weighted_squares(
        loop_gradients(net, images.repeat_interleave(n_classes, 0), every), (p.flatten() / n).tolist()
    )


def matrix_of(rows: Iterable[dict[str, Tensor]]) -> Tensor:
    """Gradients as a matrix (m, d), float64, entries in the order of the parameters."""
    return torch.stack([torch.cat([g.flatten().double() for g in row.values()]) for row in rows])


def dense_inverse_product(gradients: Tensor, vectors: Tensor, damping: float, block: int | None = None) -> Tensor:
    """F^-1 v by solving with F = damping*I + G^T G / m written out, or with its diagonal blocks; (r, d)."""
    m, d = gradients.shape
    fisher = gradients.T @ gradients / m
    if block:
        which = torch.arange(d) // block
        fisher = fisher * (which[:, None] == which)
    fisher += damping * torch.eye(d, dtype=gradients.dtype)
    return torch.linalg.solve(fisher, vectors.T).T


def recursive_inverse(gradients: Tensor, damping: float) -> Tensor:
    """F^-1 (d, d) by rank-1 updates, one for each gradient (Peste, Alistarh and Lampert 2021, eq. 3)."""
    m, d = gradients.shape
    inverse = torch.eye(d, dtype=gradients.dtype) / damping
    for g in gradients:
        product = inverse @ g
        inverse.addr_(product, product, alpha=-1 / (m + g @ product).item())
    return inverse
