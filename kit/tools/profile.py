"""Where the time of a checkpoint goes, phase by phase, and what that means for N of them, here and on named devices."""

import cProfile
import math
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from kit.archive import archive_faults, pack, serialize
from kit.budget import format_duration
from kit.checkpoint import stored, unlearn_once
from kit.competition import Loaders
from kit.device import device_of, memory_format, peak_bytes, reproducible, synchronize
from kit.methods import Method, method_of
from kit.plan import Plan
from kit.preflight import checkpoint_bytes

PHASES = ("unlearn", "write", "pack", "verify")
# Published float32 rates in TFLOP/s. How much of them small nets reach is assumed, the same everywhere.
PEAK_TFLOPS = {"T4": 8.1, "P100": 9.3, "A100": 19.5, "H100": 66.9}
ASSUMED_SHARE = 0.3
HIDDEN_RETAIN = 26_000  # images of the competition's hidden retain set
_LEAST_UNCERTAINTY = 0.05  # of the projection: what speeds of one machine differ by between minutes
_PROFILED_STEPS = 12  # enough to tell which functions take the time


@dataclass(frozen=True)
class Profile:
    """Seconds per phase of each measured checkpoint, and what decides whether n_checkpoints fit.

    phases: phase -> seconds of each measured checkpoint, of a mixture as many of each component, one's after another's;
    shares: of the components in the whole. stages: function -> its share of the method's time; steps, epochs: the
    method's length, None where it tells none; kernel_tflops: the device's rate in a convolution; n_parallel: processes
    of the emission, taken not to hinder each other; n_retain: images of the retain set here.
    """

    phases: dict[str, list[float]]
    stages: dict[str, float]
    load_s: float
    n_checkpoints: int
    n_parallel: int
    limit_s: float
    archive_bytes: int
    free_bytes: int
    memory_bytes: int
    steps: int | None
    epochs: float | None
    kernel_tflops: float
    shares: tuple[float, ...] = (1.0,)
    n_retain: int = HIDDEN_RETAIN

    @property
    def typical(self) -> dict[str, float]:
        """Phase -> seconds of a typical checkpoint."""
        return {phase: self._mean(seconds, statistics.median) for phase, seconds in self.phases.items()}

    def _mean(self, seconds: Sequence[float], of_each: Callable[[Sequence[float]], float]) -> float:
        """Over the components, each by its share."""
        n = len(seconds) // len(self.shares)
        return sum(share * of_each(seconds[n * i : n * (i + 1)]) for i, share in enumerate(self.shares))

    @property
    def whole(self) -> list[float]:
        """Seconds of each measured checkpoint."""
        return [sum(parts) for parts in zip(*self.phases.values(), strict=True)]

    @property
    def rounds(self) -> int:
        return math.ceil(self.n_checkpoints / self.n_parallel)

    def project(self, unlearn_factor: float = 1.0) -> float:
        """Seconds of n_checkpoints where the method takes so many times as long."""
        close_s, unlearn_s = self.typical["pack"] + self.typical["verify"], self.typical["unlearn"]
        each_s = self._mean(self.whole, statistics.median) - close_s + (unlearn_factor - 1) * unlearn_s
        return self.load_s + each_s * self.rounds + close_s * self.n_checkpoints

    @property
    def uncertainty_s(self) -> float:
        """What the projection may be off by either way."""
        n, least = len(self.whole) // len(self.shares), _LEAST_UNCERTAINTY * (1 if self.n_parallel == 1 else 3)
        spread = 2 * least
        if n > 1:
            deviation, whole_s = (self._mean(self.whole, f) for f in (statistics.stdev, statistics.median))
            spread = 2 * deviation / n**0.5 / whole_s
        return (self.project() - self.load_s) * max(spread, least)

    @property
    def fits(self) -> bool:
        return self.project() <= self.limit_s and self.archive_bytes <= self.free_bytes

    @property
    def share(self) -> float:
        """Of the method's own time that would fill the limit, above 1 where more fits."""
        return 1 + (self.limit_s - self.project()) / max(1e-9, self.rounds * self.typical["unlearn"])

    def elsewhere(self, growth: float = 1.0) -> dict[str, float]:
        """Device -> seconds, by rates of arithmetic alone, on so many times as many images."""
        rates = {name: ASSUMED_SHARE * peak for name, peak in PEAK_TFLOPS.items()}
        return {name: self.project(growth * self.kernel_tflops / rate) for name, rate in rates.items()}

    @property
    def growth(self) -> float:
        """How many times as many retain images the competition's hidden data has."""
        return HIDDEN_RETAIN / max(1, self.n_retain)

    def bars(self) -> list[tuple[str, float]]:
        """(name, seconds) of the phases of a typical checkpoint, those of the method's functions indented."""
        (first, unlearn_s), *others = self.typical.items()
        return [(first, unlearn_s), *((f"  {name}", part * unlearn_s) for name, part in self.stages.items()), *others]

    def lines(self) -> list[str]:
        """The profile as text, a line a phase with a bar, then the projection and its verdict."""
        width = max(len(name) for name, _ in self.bars())
        whole = self._mean(self.whole, statistics.median)
        lines = [
            f"{name:<{width}}{format_duration(s):>12} {s / whole:>7.1%}  {'#' * round(40 * s / whole)}"
            for name, s in self.bars()
        ]
        on, hidden = (
            ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in self.elsewhere(growth).items())
            for growth in (1.0, self.growth)
        )
        return [
            *lines,
            f"{self.n_checkpoints} checkpoints: {format_duration(self.project())} +- "
            f"{format_duration(self.uncertainty_s)} on this device in {self.n_parallel} "
            f"process{'es' * (self.n_parallel > 1)}, {format_duration(self.load_s)} of it for loading"
            + (f"; {self.steps} step{'s' * (self.steps != 1)} each" if self.steps is not None else ""),
            f"disk: {self.archive_bytes / 1e9:.2f} GB of {self.free_bytes / 1e9:.1f} GB free; "
            f"memory: {self.memory_bytes / 1e9:.2f} GB at most so far",
            f"elsewhere, within a factor of two: {on} (by a convolution's rate, {self.kernel_tflops:.2f} TFLOP/s "
            f"here; {ASSUMED_SHARE:.0%} of the published peak assumed there)",
            *([] if self._as_hidden else [self._on_hidden_data(hidden)]),
            self._verdict(),
        ]

    @property
    def _as_hidden(self) -> bool:
        return 0.8 < self.growth < 1.25

    def _on_hidden_data(self, hidden: str) -> str:
        return (
            f"on the competition's hidden data, {HIDDEN_RETAIN:,} retain images instead of {self.n_retain:,}, where "
            f"the method's time grows with them: {hidden}"
        )

    def _verdict(self) -> str:
        limit, used_s = format_duration(self.limit_s) + " on these images" * (not self._as_hidden), self.project()
        what = (
            f"epochs={float(f'{self.epochs * self.share:.2g}'):g}" if self.epochs else f"{self.share:.0%} of the steps"
        )
        if self.archive_bytes > self.free_bytes:
            return "does not fit the disk: store float16, or choose another folder"
        if self.fits:
            close = ", a close call" if used_s + self.uncertainty_s > self.limit_s else ""
            return f"fits the limit of {limit}: {used_s / self.limit_s:.0%} of it is used{close}; {what} would fill it"
        fit = max(0, int((self.limit_s - self.load_s) / (used_s - self.load_s) * self.n_checkpoints))
        verdict = f"does not fit the limit of {limit}: {fit} of {self.n_checkpoints} checkpoints would"
        return verdict + (f", all of them with {what}" if self.share > 0 else "")


@reproducible()  # as the checkpoints of a run are made
def profile(
    method: Method | Callable[..., Any],
    model: nn.Module,
    loaders: Loaders,
    *,
    n_measured: int = 3,
    n_checkpoints: int = 512,
    limit_s: float = 8 * 3600.0,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    load_s: float = 0.0,
    out: Path = Path(),
    n_parallel: int = 1,
    progress: bool = True,
) -> Profile:
    """Make `n_measured` checkpoints (at least 1) into a temporary archive, timing each phase; nothing is kept. Of a
    mixture as many of each component.

    One more tells which functions take the time, of a method that takes a plan a short one. load_s: seconds that
    reading the data took; out: the folder whose disk is to hold the archive.

    >>> from kit.competition import ExampleDataset, make_loaders
    >>> from kit.methods import get_method
    >>> data = [ExampleDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), [0, 1, 0, 1]) for _ in range(3)]
    >>> net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    >>> found = profile(get_method("finetune"), net, make_loaders(*data), n_checkpoints=8, progress=False)
    >>> found.fits
    True
    """
    method = method if isinstance(method, Method) else method_of(method)
    device, plan, functions = device_of(model), Plan() if method.anytime else None, cProfile.Profile()
    phases: dict[str, list[float]] = {phase: [] for phase in PHASES}

    def made(index: int, plan: Plan | None) -> nn.Module:
        return unlearn_once(method, model, loaders, seed=seed, index=index, plan=plan)[0]

    @contextmanager
    def timed(phase: str, n: int = 1) -> Iterator[None]:
        start = time.perf_counter()
        yield
        synchronize(device)
        phases[phase] += [(time.perf_counter() - start) / n] * n

    n_parts = len(method.components)
    turns = [
        list(islice((i for i in count() if method.component_of(i) == part), n_measured)) for part in range(n_parts)
    ]
    for first, *_ in turns:
        if plan:
            made(first, Plan(1))  # the first steps import and allocate
        functions.runcall(made, first, Plan(_PROFILED_STEPS))
    measured = [index for of_one in turns for index in of_one]
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / str(number) for number in range(len(measured))]
        bar = tqdm(measured, desc=f"profiling {method.name}", disable=not progress)
        for index, file in zip(bar, files, strict=True):
            with timed("unlearn"):
                net = made(index, plan)
            with timed("write"):
                file.write_bytes(stored(net, dtype))
        archive = Path(name) / "profile.zip"
        with timed("pack", len(files)):
            packed = pack(archive, (file.open("rb") for file in files))
        with timed("verify", len(files)):
            archive_faults(archive, packed, serialize(model.state_dict(), dtype))
    made_by = Counter(map(method.component_of, range(n_checkpoints)))
    epochs = method.settings.get("epochs")
    return Profile(
        phases=phases,
        stages=_shares(functions),
        load_s=load_s,
        n_checkpoints=n_checkpoints,
        n_parallel=n_parallel,
        limit_s=limit_s,
        archive_bytes=n_checkpoints * checkpoint_bytes(model, dtype),
        free_bytes=shutil.disk_usage(next(path for path in (out, *out.parents, Path()) if path.exists())).free,
        memory_bytes=peak_bytes(device),
        steps=plan.wanted if plan and n_parts == 1 else None,
        epochs=float(epochs) if isinstance(epochs, int | float) else None,
        kernel_tflops=kernel_tflops(device),
        shares=tuple(made_by[part] / n_checkpoints for part in range(n_parts)),
        n_retain=len(loaders.retain.dataset),
    )


def _shares(functions: cProfile.Profile, n_most: int = 6) -> dict[str, float]:
    """Function -> its own share of the time, the largest first."""
    times: dict[str, float] = {}
    for entry in functions.getstats():
        name = entry.code if isinstance(entry.code, str) else entry.code.co_name
        times[name.strip("<>")] = times.get(name.strip("<>"), 0.0) + entry.inlinetime
    most = sorted(times.items(), key=lambda pair: -pair[1])[:n_most]
    return {name[:50]: seconds / sum(times.values()) for name, seconds in most}


@torch.no_grad()
def kernel_tflops(device: torch.device) -> float:
    """Rate of one convolution in float32, in TFLOP/s: 64 images of 32 x 32, 64 channels to 64, 3 x 3; best of six."""
    layout = memory_format(device)
    images = torch.randn(64, 64, 32, 32).to(device).contiguous(memory_format=layout)
    convolution = nn.Conv2d(64, 64, 3, padding=1, bias=False).to(device, memory_format=layout)
    best_s = math.inf
    for _ in range(6):
        start = time.perf_counter()
        convolution(images)
        synchronize(device)
        best_s = min(best_s, time.perf_counter() - start)
    return 2 * 64 * 32 * 32 * 64 * 64 * 9 / max(best_s, 1e-9) / 1e12
