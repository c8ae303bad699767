"""Where the time of a checkpoint goes, phase by phase, and what that means for N of them on this device."""

import copy
import io
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import trange

from kit.budget import Plan, format_duration, synchronize
from kit.competition import Loaders
from kit.methods import Method
from kit.preflight import archive_bytes
from kit.seeds import checkpoint_seed, seed_everything
from kit.submission import Archive, serialize
from kit.training import device_of

PHASES = ("copy", "unlearn", "serialize", "write", "load")


@dataclass(frozen=True)
class Profile:
    """Seconds per phase of each measured checkpoint, and the projection for n_checkpoints.

    phases: phase -> seconds of each measured checkpoint. The first checkpoint pays for warming up, so the projection
    counts it once and the median of the others n_checkpoints - 1 times; `load` is the verification's reading.
    """

    phases: dict[str, list[float]]
    n_checkpoints: int
    projected_s: float
    checkpoint_s: float
    archive_bytes: int
    steps: int | None
    limit_s: float

    @property
    def fits(self) -> bool:
        return self.projected_s <= self.limit_s

    @property
    def n_fit(self) -> int:
        """How many checkpoints fit the limit."""
        first = self.projected_s - self.checkpoint_s * (self.n_checkpoints - 1)
        return max(0, int((self.limit_s - first) / self.checkpoint_s) + 1)

    def lines(self) -> list[str]:
        """The profile as text, a line a phase with a bar, then the projection and its verdict."""
        typical = {phase: statistics.median(seconds) for phase, seconds in self.phases.items()}
        whole = sum(typical.values()) or 1.0
        lines = [
            f"{phase:<10}{format_duration(seconds):>12}  {seconds / whole:>6.1%}  {'#' * round(40 * seconds / whole)}"
            for phase, seconds in typical.items()
        ]
        lines.append(
            f"{self.n_checkpoints} checkpoints: {format_duration(self.projected_s)} on this device, "
            f"{self.archive_bytes / 1e9:.2f} GB" + (f", {self.steps} steps each" if self.steps is not None else "")
        )
        limit = format_duration(self.limit_s)
        if self.fits:
            lines.append(f"fits the limit of {limit}: {self.projected_s / self.limit_s:.0%} of it is used")
        else:
            share = self.n_fit / self.n_checkpoints
            lines.append(
                f"does not fit the limit of {limit}: {self.n_fit} of {self.n_checkpoints} checkpoints would, "
                f"all of them with {share:.0%} of the steps"
            )
        return lines


def profile(
    method: Method,
    model: nn.Module,
    loaders: Loaders,
    *,
    n_measured: int = 3,
    n_checkpoints: int = 512,
    limit_s: float = 8 * 3600.0,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Profile:
    """Make `n_measured` checkpoints (at least 1) into a temporary archive, timing each phase; nothing is kept."""
    device = device_of(model)
    phases: dict[str, list[float]] = {phase: [] for phase in PHASES}
    plan = Plan() if method.anytime else None

    def clock(phase: str, start: float) -> float:
        synchronize(device)
        now = time.perf_counter()
        phases[phase].append(now - start)
        return now

    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(Path(folder) / "profile.zip")
        for index in trange(n_measured, desc=f"profiling {method.name}", disable=not progress):
            checkpoint = checkpoint_seed(seed, index)
            seed_everything(checkpoint)
            start = time.perf_counter()
            net = copy.deepcopy(model)
            start = clock("copy", start)
            net = method(net, loaders, seed=checkpoint, plan=plan)
            start = clock("unlearn", start)
            data = serialize(net.state_dict(), dtype)
            start = clock("serialize", start)
            archive.add(index, data)
            start = clock("write", start)
            torch.load(io.BytesIO(data), weights_only=True)
            clock("load", start)
        archive.close()
    seconds = [sum(parts) for parts in zip(*phases.values(), strict=True)]
    typical = statistics.median(seconds[1:] or seconds)
    return Profile(
        phases=phases,
        n_checkpoints=n_checkpoints,
        projected_s=seconds[0] + typical * (n_checkpoints - 1),
        checkpoint_s=typical,
        archive_bytes=archive_bytes(model, n_checkpoints, dtype),
        steps=plan.wanted if plan else None,
        limit_s=limit_s,
    )
