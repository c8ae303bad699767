"""forget (forget-set-free), 8th place: redraw random layers and imitate the original on the retain set, in cycles.

A cycle draws 6 layers anew (not the last one, not those of shortcuts) and then minimises the mean squared difference
between the logits and the original's, both on retain images with N(0, 0.1^2) noise. 3 cycles of 1, 2 and 2 epochs. The
forget set is not used. Source: Ahn, Lee, Bae, Yim and Jung, report and slides on the competition (learning rate 1e-3
along a cosine, 3 to 4 cycles, more layers from cycle to cycle; public score 0.0935, with 3 cycles 0.0856). A layer is
here a convolution or linear layer, and each cycle has a cosine of its own: what they say leaves that open.

Hyper-parameters:
  cycles: cycles of redrawing and imitating
  n_layers: layers that the first cycle draws anew
  growth: more layers in each further cycle
  noise: standard deviation of the noise on the images
  first_epochs: passes over the retain set in the first cycle
  epochs: passes in each further one
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.errors import InputError
from kit.methods.shared.surgery import in_shortcut, last_layer, layers, one_image, reset_layer
from kit.methods.shared.teaching import frozen_copy
from kit.plan import Plan, planned_phases
from kit.training import fine_tune

RANGES = {"cycles": (1, 4), "n_layers": (3, 12), "noise": (0.0, 0.3), "lr": (1e-4, 1e-2)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    cycles: int = 3,
    n_layers: int = 6,
    growth: int = 0,
    noise: float = 0.1,
    first_epochs: float = 1.0,
    epochs: float = 2.0,
    **recovery: Any,
) -> nn.Module:
    """Redraw `n_layers` layers, in each further cycle `growth` more, and train for `epochs` epochs a cycle, in the
    first `first_epochs`."""
    torch.manual_seed(seed)
    wanted = [epochs_ * len(retain_loader) for epochs_ in (first_epochs, *[epochs] * (cycles - 1))]
    last = last_layer(net, one_image(net, retain_loader))
    choice = [layer for name, layer in layers(net).items() if not in_shortcut(name) and layer is not last]
    if not choice:
        raise InputError(
            f"{type(net).__name__} has no layer but its last, and this method redraws others: choose another method"
        )
    imitate = partial(_distance_in_logits, teacher=frozen_copy(net), noise=noise)
    for index, n_steps in enumerate(planned_phases(plan, *wanted)):
        for drawn in torch.randperm(len(choice))[: n_layers + growth * index].tolist():
            reset_layer(choice[drawn])
        fine_tune(net, retain_loader, n_steps, objective=imitate, **recovery)
    return net


def _distance_in_logits(net: nn.Module, images: Tensor, labels: Tensor, *, teacher: nn.Module, noise: float) -> Tensor:
    noisy = images + noise * torch.randn(images.shape).to(images)  # on the CPU: the same on every device
    with torch.no_grad():
        target = teacher(noisy)
    return F.mse_loss(net(noisy).float(), target.float())
