"""Changes of the weights themselves, the impair step of many methods."""

import torch
from torch import nn


@torch.no_grad()
def add_noise(net: nn.Module, beta: float) -> None:
    """Add N(0, (beta * sigma)^2) to every parameter in place, sigma the standard deviation of its tensor's entries
    (0 for a tensor of one entry)."""
    for parameter in net.parameters():
        sigma = parameter.std(unbiased=False)
        # Drawn on the CPU: the same seed gives the same noise on every device.
        noise = torch.randn(parameter.shape, dtype=parameter.dtype).to(parameter.device)
        parameter.add_(noise * (beta * sigma))
