"""Changes of the weights themselves, the impair step of many methods."""

import torch
from torch import nn

from kit.errors import InputError


@torch.no_grad()
def add_noise(net: nn.Module, beta: float) -> None:
    """Add N(0, (beta * sigma)^2) to every parameter in place, sigma the standard deviation of its tensor's entries
    (0 for a tensor of one entry)."""
    for parameter in net.parameters():
        sigma = parameter.std(unbiased=False)
        # Drawn on the CPU: the same seed gives the same noise on every device.
        noise = torch.randn(parameter.shape, dtype=parameter.dtype).to(parameter.device)
        parameter.add_(noise * (beta * sigma))


def reset_parameters(net: nn.Module) -> None:
    """Draw the weights of every layer anew in place, by the layer's own `reset_parameters`; BatchNorm also forgets
    its statistics.

    What a net's constructor does to its layers afterwards (torchvision's ResNets scale their convolutions) is not
    repeated. Raises InputError for a module with parameters of its own that cannot draw them.
    """
    for name, module in net.named_modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif next(module.parameters(recurse=False), None) is not None:
            raise InputError(
                f"{name or 'the net'} ({type(module).__name__}) has parameters but no reset_parameters: "
                "give it one, or choose a method that needs no freshly initialised net"
            )
