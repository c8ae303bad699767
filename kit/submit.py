"""The run cell of a submission notebook: preflight, emission in time, the archive checked, one clear last line."""

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kit.budget import TimeBudget, format_duration, parse_duration
from kit.competition import (
    ARCHIVE_NAME,
    INPUT_DIR,
    N_CHECKPOINTS,
    TMP_DIR,
    WORKING_DIR,
    Loaders,
    is_stand_in,
    load_original,
    read_tree,
)
from kit.device import accelerators, choose_device
from kit.emit import emit
from kit.errors import InputError
from kit.jobs import warm_up
from kit.ledger import check_folder
from kit.methods import Method, method_from_file, method_of
from kit.preflight import check_count


def submit(
    unlearn: str | Callable[..., Any],
    *,
    settings: Mapping[str, Any] | None = None,
    n_checkpoints: int = N_CHECKPOINTS,
    limit: str | float = "8h",
    seed: int = 0,
    dtype: str | None = "float16",
    root: Path = INPUT_DIR,
    out: Path = WORKING_DIR,
    work: Path = TMP_DIR,
    devices: str | Sequence[str] = (),
    fill: bool = False,
    progress: bool = True,
) -> Path:
    """Write and check `out/submission.zip`; its path is returned. Everything it needs is looked for before it begins.

    unlearn: a Method, a file as `method.py[:function]` or a function of the four arguments; settings: values of its
    hyper-parameters. limit: of the time from here on; dtype: of the stored weights, None for the model's own. devices:
    all GPUs by default, a process for each; a function that is defined in the notebook itself can use one only. Where
    only the public stand-in is mounted the archive is an empty file. fill, progress: as for `emit`. Raises
    InputError where something is missing and where the archive fails its check.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "empty.txt").touch()  # as where the hidden data is not
    >>> keep = lambda net, retain_loader, forget_loader, val_loader: None
    >>> submit(keep, root=root, out=root).name  # doctest: +ELLIPSIS
    stand-in data: ... is an empty file; the hidden data comes with the scoring run
    'submission.zip'
    """
    budget = TimeBudget(parse_duration(limit))
    check_count(n_checkpoints)
    if dtype not in (None, "float16", "bfloat16", "float32"):
        raise InputError(f"dtype {dtype!r}: unknown: float16, bfloat16, float32 or None")
    stored = dtype and getattr(torch, dtype)
    method = method_from_file(unlearn) if isinstance(unlearn, str) else unlearn
    method = method if isinstance(method, Method) else method_of(method)
    if unknown := sorted(set(settings or {}) - set(method.defaults)):
        known = ", ".join(method.defaults) or "none"
        raise InputError(f"settings: {method.name} has no hyper-parameter {unknown[0]!r}: it has {known}")
    method = replace(method, hyper={**method.hyper, **(settings or {})})
    archive = check_folder(out) / ARCHIVE_NAME
    if is_stand_in(root):
        archive.touch()
        print(f"stand-in data: {archive} is an empty file; the hidden data comes with the scoring run")
        return archive
    named = [devices] if isinstance(devices, str) else devices
    devices = [str(choose_device(name)) for name in named or accelerators() or ["cpu"]]
    if len(devices) > 1 and not _travels(method):
        print(f"one of {len(devices)} devices is used: give the method as a file to use all")
        devices = devices[:1]
    if len(devices) > 1:
        warm_up()
    problem = partial(read_problem, Path(root), method)
    model, loaders = problem(devices[0] if len(devices) == 1 else "cpu")
    n_images, limit = sum(len(loader.dataset) for loader in loaders), format_duration(budget.limit_s)
    print(f"preflight: {n_images:,} images, {', '.join(devices)}, {n_checkpoints} checkpoints in {limit}")
    options = {"n_checkpoints": n_checkpoints, "budget": budget, "seed": seed, "dtype": stored, "devices": devices}
    options |= {"problem": partial(problem, progress=False), "fill": fill, "progress": progress}
    result = emit(method, model, loaders, out=out, work=work, **options)
    if result.faults:
        raise InputError(f"{archive}: not fit for the upload: {'; '.join(result.faults)}")
    print(f"done: {result.summary(budget.limit_s)}, checked: {archive}")
    return archive


def _travels(method: Method) -> bool:
    """Can another process read its function again? Not what is defined in the notebook itself, or in a function."""
    try:
        return b"__main__" not in pickle.dumps(method)
    except Exception:  # pickle raises many kinds
        return False


def read_problem(
    root: Path,
    method: Method,
    device: str,
    *,
    architecture: Callable[[], nn.Module] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> tuple[nn.Module, Loaders]:
    """The original model of an input tree on a device, and the loaders that a method is given."""
    model = load_original(root, *([architecture] if architecture else [])).to(device)
    where = device if method.anytime else "cpu"
    return model, read_tree(root, batch_size, loader=method.loader, device=where, progress=progress)
