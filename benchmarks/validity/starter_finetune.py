"""The starter notebook's fine-tuning with its hyper-parameters open, as the participants' sweep changed them.

SGD with momentum 0.9 and weight decay 5e-4 on batches of `batch_size`, the learning rate along a cosine that falls
once an epoch, as in the starter. For `python -m local_eval run --method benchmarks/validity/starter_finetune.py`.
"""

import math
from collections.abc import Iterable

import torch
from torch import nn

from kit.competition import TensorLoader
from kit.plan import Plan, planned_steps
from kit.training import fine_tune


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
    lr: float = 0.001,
    batch_size: int = 64,
    epochs: int = 1,
) -> nn.Module:
    torch.manual_seed(seed)
    loader = TensorLoader(retain_loader.dataset, batch_size=batch_size, shuffle=True)

    def once_an_epoch(progress: float) -> float:
        epoch = min(int(progress * epochs + 1e-9), epochs - 1)
        return 0.5 * (1 + math.cos(math.pi * epoch / epochs))

    return fine_tune(net, loader, planned_steps(plan, epochs * len(loader)), lr=lr, schedule=once_an_epoch)
