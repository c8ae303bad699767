"""Where the time of a checkpoint goes, phase by phase, and what that means for N of them, here and on named devices."""

import functools
import inspect
import linecache
import math
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType

import torch
from torch import nn
from tqdm import trange

from kit.budget import format_duration
from kit.checkpoint import unlearn_once
from kit.competition import Loaders
from kit.device import device_of, one_thread, peak_bytes, synchronize
from kit.errors import InputError
from kit.methods import Method
from kit.plan import Plan
from kit.preflight import checkpoint_bytes
from kit.seeds import checkpoint_seed
from kit.submission import pack, serialize, verify

PHASES = ("unlearn", "serialize", "write", "pack", "verify")
# Published float32 rates in TFLOP/s. How much of them small nets reach is assumed, the same everywhere.
PEAK_TFLOPS = {"T4": 8.1, "P100": 9.3, "A100": 19.5, "H100": 66.9}
ASSUMED_SHARE = 0.3
_SAMPLE_S = 0.004
_LEAST_UNCERTAINTY = 0.05  # of the projection: what speeds of one machine differ by between minutes


@dataclass(frozen=True)
class Profile:
    """Seconds per phase of each measured checkpoint, and the projection for n_checkpoints.

    phases: phase -> seconds of each measured checkpoint; stages: line of the method -> seconds of a typical checkpoint
    that are spent under it. projected_s: loading, and n_checkpoints times the typical checkpoint; uncertainty_s: what
    it may be off by either way. elsewhere: device -> seconds, by rates of arithmetic alone. share: of the method's own
    time that would fill the limit, above 1 where more fits.
    """

    phases: dict[str, list[float]]
    stages: dict[str, float]
    load_s: float
    n_checkpoints: int
    projected_s: float
    uncertainty_s: float
    checkpoint_s: float
    archive_bytes: int
    free_bytes: int
    memory_bytes: int
    steps: int | None
    epochs: float | None
    limit_s: float
    share: float
    kernel_tflops: float
    n_parallel: int = 1
    elsewhere: dict[str, float] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return self.projected_s <= self.limit_s and self.archive_bytes <= self.free_bytes

    @property
    def n_fit(self) -> int:
        """How many checkpoints fit the limit."""
        each_s = (self.projected_s - self.load_s) / self.n_checkpoints
        return max(0, int((self.limit_s - self.load_s) / each_s))

    def bars(self) -> list[tuple[str, float]]:
        """(name, seconds) of the phases of a typical checkpoint, those of the method's lines indented."""
        typical = {phase: statistics.median(seconds) for phase, seconds in self.phases.items()}
        stages = [(f"  {stage}", seconds) for stage, seconds in self.stages.items()]
        return [("unlearn", typical["unlearn"]), *stages, *list(typical.items())[1:]]

    def lines(self) -> list[str]:
        """The profile as text, a line a phase with a bar, then the projection and its verdict."""
        whole = self.checkpoint_s or 1.0
        width = max(len(name) for name, _ in self.bars())
        lines = [
            f"{name:<{width}}{format_duration(s):>12} {s / whole:>7.1%}  {'#' * round(40 * s / whole)}"
            for name, s in self.bars()
        ]
        lines.append(
            f"{self.n_checkpoints} checkpoints: {format_duration(self.projected_s)} +- "
            f"{format_duration(self.uncertainty_s)} on this device in {self.n_parallel} process"
            f"{'es' * (self.n_parallel > 1)}, {format_duration(self.load_s)} of it for loading"
            + (f"; {self.steps} steps each" if self.steps is not None else "")
        )
        lines.append(
            f"disk: {self.archive_bytes / 1e9:.2f} GB of {self.free_bytes / 1e9:.1f} GB free; "
            f"memory: {self.memory_bytes / 1e9:.2f} GB at most so far"
        )
        if self.elsewhere:
            on = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in self.elsewhere.items())
            lines.append(
                f"elsewhere, within a factor of two: {on} (by a convolution's rate, {self.kernel_tflops:.2f} TFLOP/s "
                f"here; {ASSUMED_SHARE:.0%} of the published peak assumed there)"
            )
        return [*lines, self._verdict()]

    def _verdict(self) -> str:
        limit, n_all = format_duration(self.limit_s), self.n_checkpoints
        more = f"; {self._advice()} would fill it" if 0 < self.share < math.inf else ""
        if self.archive_bytes > self.free_bytes:
            return "does not fit the disk: store float16, or choose another folder"
        if self.fits:
            close = ", a close call" if self.projected_s + self.uncertainty_s > self.limit_s else ""
            return f"fits the limit of {limit}: {self.projected_s / self.limit_s:.0%} of it is used{close}{more}"
        fit = f"{self.n_fit} of {n_all} checkpoints would" if self.n_fit else "no checkpoint would"
        return f"does not fit the limit of {limit}: {fit}" + (f", all of them with {self._advice()}" if more else "")

    def _advice(self) -> str:
        """What of the method's own length would use the limit."""
        if self.epochs:
            return f"epochs={float(f'{self.epochs * self.share:.2g}'):g}"
        return f"{self.share:.0%} of the steps"


@one_thread()  # as the checkpoints of a run are made
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
    load_s: float = 0.0,
    out: Path = Path(),
    n_parallel: int = 1,
    progress: bool = True,
) -> Profile:
    """Make `n_measured` checkpoints (at least 1) into a temporary archive, timing each phase; nothing is kept.

    A method that takes a plan is warmed up by a short run first; of another one the first checkpoint pays for that,
    and the projection leaves it out where there are more. load_s: seconds that reading the data took; out: the folder
    whose disk is to hold the archive; n_parallel: processes of the emission, taken not to hinder each other.
    """
    device = device_of(model)
    phases: dict[str, list[float]] = {phase: [] for phase in PHASES}
    plan = Plan() if method.anytime else None
    stages: Counter[str] = Counter()
    if plan:
        unlearn_once(method, model, loaders, seed=checkpoint_seed(seed, -1), index=0, plan=Plan(1))

    def clock(phase: str, start: float) -> float:
        synchronize(device)
        now = time.perf_counter()
        phases[phase].append(now - start)
        return now

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index in trange(n_measured, desc=f"profiling {method.name}", disable=not progress):
            start = time.perf_counter()
            with _sampling(_code_of(method), stages):
                net, _ = unlearn_once(method, model, loaders, seed=seed, index=index, plan=plan)
            start = clock("unlearn", start)
            data = serialize(net.state_dict(), dtype)
            start = clock("serialize", start)
            (folder / str(index)).write_bytes(data)
            clock("write", start)
        start = time.perf_counter()
        archive = pack(folder / "profile.zip", ((folder / str(index)).read_bytes() for index in range(n_measured)))
        start = clock("pack", start)
        verify(archive, n_measured, model.state_dict())
        clock("verify", start)
    for phase in ("pack", "verify"):
        phases[phase] = [phases[phase][0] / n_measured] * n_measured
    seconds = [sum(parts) for parts in zip(*phases.values(), strict=True)]
    warm = seconds if plan else seconds[1:] or seconds
    typical, n_samples = statistics.median(warm), sum(stages.values())
    unlearn_s = statistics.median(phases["unlearn"])
    spread = 2 * statistics.stdev(warm) / len(warm) ** 0.5 / typical if len(warm) > 1 else 2 * _LEAST_UNCERTAINTY
    rate = kernel_tflops(device)
    other_s, close_s = typical - unlearn_s, phases["pack"][0] + phases["verify"][0]
    rounds = math.ceil(n_checkpoints / n_parallel)
    whole_s = (typical - close_s) * rounds + close_s * n_checkpoints
    scale = {name: rate / (ASSUMED_SHARE * peak) for name, peak in PEAK_TFLOPS.items()} if device.type == "cpu" else {}
    epochs = method.settings.get("epochs")
    return Profile(
        phases=phases,
        stages={stage: unlearn_s * n / n_samples for stage, n in stages.most_common(6)},
        load_s=load_s,
        n_checkpoints=n_checkpoints,
        projected_s=load_s + whole_s,
        uncertainty_s=whole_s * max(spread, _LEAST_UNCERTAINTY * (1 if n_parallel == 1 else 3)),
        checkpoint_s=typical,
        archive_bytes=n_checkpoints * checkpoint_bytes(model, dtype),
        free_bytes=shutil.disk_usage(next(path for path in (out, *out.parents, Path()) if path.exists())).free,
        memory_bytes=peak_bytes(device),
        steps=plan.wanted if plan else None,
        epochs=float(epochs) if isinstance(epochs, int | float) else None,
        limit_s=limit_s,
        share=1 + (limit_s - load_s - whole_s) / (rounds * unlearn_s) if unlearn_s > 0 else math.inf,
        n_parallel=n_parallel,
        kernel_tflops=rate,
        elsewhere={name: load_s + n_checkpoints * (other_s + unlearn_s * factor) for name, factor in scale.items()},
    )


@torch.no_grad()
def kernel_tflops(device: torch.device) -> float:
    """Rate of one convolution in float32, in TFLOP/s: 64 images of 32 x 32, 64 channels to 64, 3 x 3; best of six."""
    images = torch.randn(64, 64, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    convolution = nn.Conv2d(64, 64, 3, padding=1, bias=False).to(device, memory_format=torch.channels_last)
    best_s = math.inf
    for _ in range(6):
        start = time.perf_counter()
        convolution(images)
        synchronize(device)
        best_s = min(best_s, time.perf_counter() - start)
    return 2 * 64 * 32 * 32 * 64 * 64 * 9 / max(best_s, 1e-9) / 1e12


def plot(profile: Profile, title: str, path: Path) -> None:
    """The bars as a picture, in the format of the file's suffix."""
    import matplotlib  # here: only this needs it

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = profile.bars()[::-1]
    figure, axes = pyplot.subplots(figsize=(9, 1.6 + 0.3 * len(bars)), layout="constrained")
    colours = ["#9ec5e8" if name.startswith(" ") else "#2b6ca3" for name, _ in bars]
    drawn = axes.barh([name for name, _ in bars], [seconds for _, seconds in bars], color=colours)
    axes.bar_label(drawn, [format_duration(seconds) for _, seconds in bars], padding=3)
    axes.set(title=title, xlabel=profile.lines()[-1].partition(";")[0], xticks=[])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.margins(x=0.15)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the picture cannot be written ({error})") from error
    finally:
        pyplot.close(figure)


def _code_of(method: Method) -> CodeType:
    function = inspect.unwrap(method.function)
    while isinstance(function, functools.partial):
        function = function.func
    return function.__code__


@contextmanager
def _sampling(code: CodeType, stages: Counter[str]) -> Iterator[None]:
    """Look every few milliseconds which line of the method, or of the kit on its behalf, this thread is at, and count.

    A method needs to know nothing of it; a line stands for all that is called from it outside of both.
    """
    own, done = {code.co_filename, str(Path(__file__).parent)}, threading.Event()
    thread = threading.get_ident()

    def look() -> None:
        while not done.wait(_SAMPLE_S):
            frame, deepest = sys._current_frames().get(thread), None
            while frame and frame.f_code is not code:
                path = frame.f_code.co_filename
                if deepest is None and (path in own or str(Path(path).parent) in own):
                    deepest = frame
                frame = frame.f_back
            if frame:
                at = deepest or frame
                line = " ".join(linecache.getline(at.f_code.co_filename, at.f_lineno).split())
                stages[f"{at.f_code.co_name}: {line}"[:60]] += 1

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
