"""Factors of the learning rate over the share of the steps that is done."""

from kit.training import Schedule, cosine


def constant(progress: float) -> float:
    """Factor 1 throughout."""
    return 1.0


def cosine_to(least: float) -> Schedule:
    """From 1 down to `least` along half a cosine."""
    return lambda progress: least + (1 - least) * cosine(progress)


def per_epoch(*factors: float) -> Schedule:
    """One factor after the other, each for an equal share of the steps.

    >>> [per_epoch(1.0, 0.5, 0.1)(step / 6) for step in range(6)]
    [1.0, 1.0, 0.5, 0.5, 0.1, 0.1]
    """
    return lambda progress: factors[min(int(progress * len(factors) + 1e-6), len(factors) - 1)]


def cosine_per_epoch(n_epochs: int) -> Schedule:
    """The cosine as torch's `CosineAnnealingLR(T_max=n_epochs)` takes it when it is asked once an epoch."""
    return per_epoch(*(cosine(epoch / n_epochs) for epoch in range(n_epochs)))


def part(schedule: Schedule, start: float, end: float) -> Schedule:
    """The part of a schedule from progress `start` to `end`: for training in several calls with one optimiser."""
    return lambda progress: schedule(start + (end - start) * progress)


def one_cycle(warm_up: float) -> Schedule:
    """From 0 to 1 over the share `warm_up` of the steps, then linearly back to 0.

    The first step is at 0 and changes no weight, so that a plan of a single step trains nothing: recorded results rest
    on these values, and in longer plans the step hardly matters.
    """
    return lambda progress: progress / warm_up if progress < warm_up else (1 - progress) / (1 - warm_up)
