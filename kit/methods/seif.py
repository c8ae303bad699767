"""seif, 3rd prize: strong noise on the first convolution alone, then fine-tuning whose step depends on the batch.

conv1 <- conv1 + N(0, 0.6^2); 4 epochs on the retain set minimising mean CE of the batch times the mean weight of its
labels' classes (1 for class 0, 0.05 for the others): a step size that depends on the batch, not a weighted CE; noise of
0.005 on conv1 again after the third. Source: the notebook of the competition (learning rate 7e-4 along a cosine, once
an epoch; private score 0.0885).

Hyper-parameters:
  noise: standard deviation of the noise at the beginning
  late_noise: the same before the last epoch
  other_weight: weight of all classes but class 0
  epochs: passes over the retain set
  lr: learning rate, at its highest
  momentum: of SGD
  weight_decay: of SGD
  bfloat16: train in bfloat16 where autocast allows it
"""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from kit.methods.shared.schedules import cosine_per_epoch, part
from kit.methods.shared.surgery import add_normal, check_at_least, first_layer
from kit.plan import Plan, planned_phases
from kit.training import cross_entropy, fused, train

RANGES = {"noise": (0.1, 1.0), "late_noise": (1e-3, 0.1), "epochs": (2, 5), "lr": (7e-5, 7e-3)}


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    noise: float = 0.6,
    late_noise: float = 0.005,
    other_weight: float = 0.05,
    epochs: int = 4,
    lr: float = 7e-4,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    bfloat16: bool = False,
) -> nn.Module:
    """Add noise of the standard deviation `noise` to the first convolution (without any, the first linear layer),
    train for `epochs` epochs, before the last of them with `late_noise`. other_weight: of the classes but class 0."""
    check_at_least(1, epochs=epochs)
    torch.manual_seed(seed)
    n_steps, n_last = planned_phases(plan, (epochs - 1) * len(retain_loader), len(retain_loader))
    noisy = list(first_layer(net).parameters())
    optimizer, schedule = (
        fused(torch.optim.SGD, net.parameters(), lr, momentum=momentum, weight_decay=weight_decay),
        cosine_per_epoch(epochs),
    )
    weighted = partial(_times_class_weight, other_weight=other_weight)
    dtype, last = torch.bfloat16 if bfloat16 else None, (epochs - 1) / epochs
    for std, n, span in ((noise, n_steps, part(schedule, 0, last)), (late_noise, n_last, part(schedule, last, 1))):
        add_normal(noisy, std)
        train(net, retain_loader, n, optimizer, schedule=span, objective=weighted, autocast_dtype=dtype)
    return net


def _times_class_weight(net: nn.Module, images: Tensor, labels: Tensor, *, other_weight: float) -> Tensor:
    weight = torch.where(labels == 0, 1.0, other_weight).mean()
    return weight * cross_entropy(net, images, labels)
