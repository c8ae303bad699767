"""Do nothing: the baseline row. Every checkpoint is the original model."""

from collections.abc import Iterable

from torch import nn

from kit.plan import Plan, planned_steps


def unlearn(
    net: nn.Module,
    retain_loader: Iterable,
    forget_loader: Iterable,
    val_loader: Iterable,
    *,
    seed: int,
    plan: Plan | None = None,
) -> nn.Module:
    """Return the net as it came: what any unlearning method has to beat."""
    planned_steps(plan, 0)
    return net
