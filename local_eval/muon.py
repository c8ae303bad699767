"""Muon for convolutions, Nesterov SGD for the rest: the optimiser of the `fast` recipe."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Coefficients of the quintic Newton-Schulz iteration (Jordan et al. 2024, "Muon: an optimizer for hidden layers in
# neural networks"): singular values in (0, 1] move quickly to about 1, not exactly to it.
_QUINTIC = (3.4445, -4.7750, 2.0315)


@torch.no_grad()
def orthogonalize(matrix: Tensor, n_iterations: int = 3) -> Tensor:
    """Bring the singular values of a matrix (n, m) near 1, keeping its singular vectors."""
    a, b, c = _QUINTIC
    x = matrix / (matrix.norm() + 1e-7)
    if transposed := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(n_iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if transposed else x


class Muon(torch.optim.Optimizer):
    """Convolution weights move along the orthogonalised momentum and keep a fixed norm; the rest by Nesterov SGD.

    torch.optim.Muon takes matrices only and has no fixed norm. lr: of the convolutions, relative to a weight norm of
    sqrt(output channels); sgd_lr, momentum, weight_decay: of all other parameters.
    """

    def __init__(
        self, net: nn.Module, lr: float = 0.15, sgd_lr: float = 0.5, momentum: float = 0.9, weight_decay: float = 5e-4
    ):
        convolutions = [parameter for parameter in net.parameters() if parameter.ndim == 4]
        others = [parameter for parameter in net.parameters() if parameter.ndim < 4]
        defaults = {"momentum": momentum, "weight_decay": weight_decay}
        groups = [
            {"params": convolutions, "lr": lr, "momentum": 0.6, "weight_decay": 0.0, "update": _muon_step},
            {"params": others, "lr": sgd_lr, "update": _nesterov_step},
        ]
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            group["update"](parameters, [self.state[parameter]["momentum"] for parameter in parameters], group)


def _muon_step(parameters: Iterable[Tensor], buffers: Iterable[Tensor], group: dict) -> None:
    for parameter, buffer in zip(parameters, buffers, strict=True):
        buffer.mul_(group["momentum"]).add_(parameter.grad)
        direction = parameter.grad.add(buffer, alpha=group["momentum"]).flatten(1)
        parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
        parameter.add_(orthogonalize(direction).view_as(parameter), alpha=-group["lr"])


def _nesterov_step(parameters: Iterable[Tensor], buffers: Iterable[Tensor], group: dict) -> None:
    for parameter, buffer in zip(parameters, buffers, strict=True):
        gradient = parameter.grad.add(parameter, alpha=group["weight_decay"])
        buffer.mul_(group["momentum"]).add_(gradient)
        parameter.add_(gradient.add_(buffer, alpha=group["momentum"]), alpha=-group["lr"])
