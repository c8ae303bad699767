"""Plain forms of the Fisher algebra: one sample at a time, dense matrices, the recursion of the SSSE paper."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def loop_gradients(net: nn.Module, images: Tensor, labels: Tensor) -> list[dict[str, Tensor]]:
    """The gradients of the cross-entropy of each sample, a batch of one at a time, in evaluation mode."""
    net.eval()
    named = {name: p for name, p in net.named_parameters() if p.requires_grad}
    rows = []
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        loss = F.cross_entropy(net(image), label)
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        pairs = zip(named.items(), gradients, strict=True)
        rows.append({name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs})
    return rows


def loop_diagonal(net: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The empirical diagonal: mean of the squared gradients."""
    rows = loop_gradients(net, images, labels)
    return {name: sum(row[name].square() for row in rows) / len(rows) for name in rows[0]}


def golatkar_diagonal(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """mean_i sum_y p_y g_i(y)^2 (Golatkar, Achille and Soatto 2020, supplementary code)."""
    with torch.no_grad():
        p = net.eval()(images).softmax(1)
    total: dict[str, Tensor] = {}
    for label in range(p.shape[1]):
        for weight, row in zip(p[:, label], loop_gradients(net, images, torch.full((len(p),), label)), strict=True):
            for name, gradient in row.items():
                total[name] = total.get(name, 0) + weight * gradient.square() / len(p)
    return total


def matrix_of(rows: list[dict[str, Tensor]]) -> Tensor:
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
