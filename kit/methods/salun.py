"""SalUn (saliency unlearning): random labels, but only the weights that the forget set's loss depends on most move.

w <- m (w* + step) + (1 - m) w*, m the half of all weights with the largest |grad CE| over the forget set; the steps
minimise CE over the forget set with random wrong labels and over the retain set with its own. Source: Fan et al. 2024,
"SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency", eqs. 3 to 5 (learning rate 0.01, 10 epochs).

Hyper-parameters:
  share: share of the weights that moves
  epochs: passes over both sets
  lr: learning rate, at its highest
  momentum: of SGD
  weight_decay: of SGD, on the weights that move
  bfloat16: train in bfloat16 where autocast allows it
"""

from collections.abc import Iterable
from itertools import islice

import torch
from torch import nn

from kit.device import device_of
from kit.methods.shared.data import interleaved, other_labels, relabelled
from kit.methods.shared.surgery import n_classes, one_image, smallest
from kit.plan import Plan, planned_phases
from kit.training import cross_entropy, cycle, fine_tune, unpack

RANGES = {"share": (0.05, 0.9), "epochs": (1.0, 15.0), "lr": (1e-4, 1e-1)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    share: float = 0.5,
    epochs: float = 10.0,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    bfloat16: bool = False,
) -> nn.Module:
    """Train the share `share` of the weights for `epochs` epochs of both sets; the others stay as they are to the bit.

    A planned step is an optimiser step or a batch of the forget set's gradient.
    """
    torch.manual_seed(seed)
    n_both = len(retain_loader) + len(forget_loader)
    n_gradient, n_steps = planned_phases(plan, len(forget_loader), epochs * n_both, least=(1,))
    net.eval()
    net.zero_grad()
    for batch in islice(cycle(forget_loader), n_gradient):
        cross_entropy(net, *unpack(batch, device_of(net))).backward()
    moving = [parameter for parameter in net.parameters() if parameter.grad is not None]
    held = smallest(torch.cat([parameter.grad.abs().flatten() for parameter in moving]), 1 - share)
    masks = held.logical_not().split([parameter.numel() for parameter in moving])
    net.zero_grad()

    @torch.no_grad()
    def mask_gradients(model: nn.Module) -> None:
        for parameter, mask in zip(moving, masks, strict=True):
            decayed = parameter.grad + weight_decay * parameter  # here: the optimiser's would move all weights
            parameter.grad.copy_(mask.view(parameter.shape) * decayed)

    classes = n_classes(net, one_image(net, retain_loader))
    wrong = relabelled(forget_loader, device_of(net), lambda images, labels: other_labels(labels, classes))
    return fine_tune(
        net,
        interleaved(retain_loader, wrong),
        n_steps,
        lr=lr,
        momentum=momentum,
        weight_decay=0.0,
        bfloat16=bfloat16,
        before_step=mask_gradients,
    )
