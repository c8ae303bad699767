"""The run cell of a submission notebook: preflight, emission in time, the archive checked, one clear last line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kit.budget import TimeBudget, format_duration
from kit.competition import (
    ARCHIVE_NAME,
    DISK_LIMIT_BYTES,
    INPUT_DIR,
    N_CHECKPOINTS,
    WORKING_DIR,
    is_stand_in,
    load_original,
    read_tree,
)
from kit.emit import emit
from kit.errors import InputError
from kit.methods import method_of
from kit.preflight import archive_bytes, check_tree, choose_device
from kit.submission import verdict_lines


def submit(
    unlearn: Callable[..., Any],
    name: str | None = None,
    *,
    n_checkpoints: int = N_CHECKPOINTS,
    limit: str | float = "8h",
    seed: int = 0,
    dtype: torch.dtype | None = torch.float16,
    root: Path = INPUT_DIR,
    out: Path = WORKING_DIR,
    device: str = "auto",
    **emission: Any,
) -> Path:
    """Write and check `out/submission.zip`; its path is returned. Everything it needs is looked for before it begins.

    unlearn: the method, a function of the four arguments; name: what the ledger calls it. limit: of the time from
    here on; dtype: of the stored weights, None for the model's own. Where only the public stand-in is mounted the
    archive is an empty file. emission: what else `emit` can be told. Raises InputError where something is missing
    and where the archive fails its check.
    """
    budget = TimeBudget(limit)
    archive = Path(out) / ARCHIVE_NAME
    if is_stand_in(root):
        archive.touch()
        print(f"stand-in data: {archive} is an empty file; the hidden data comes with the scoring run")
        return archive
    method = method_of(unlearn, name)
    where = choose_device(device)
    n_images = check_tree(root)
    model = load_original(root).to(where)
    needed_bytes = archive_bytes(model, n_checkpoints, dtype)
    if needed_bytes > DISK_LIMIT_BYTES:
        raise InputError(
            f"{n_checkpoints} checkpoints take {needed_bytes / 1e9:.1f} GB, {WORKING_DIR} holds "
            f"{DISK_LIMIT_BYTES / 1e9:.0f}: store them as dtype=torch.float16"
        )
    print(
        f"preflight: {n_images:,} images, {where.type}, {needed_bytes / 1e9:.2f} GB for {n_checkpoints} checkpoints, "
        f"{format_duration(budget.limit_s)}"
    )
    loaders = read_tree(root, loader=method.loader, device=where if method.anytime else "cpu")
    options = {"budget": budget, "seed": seed, "dtype": dtype, **emission}
    result = emit(method, model, loaders, out=out, n_checkpoints=n_checkpoints, **options)
    print("\n".join(verdict_lines(result.checks)))
    if faults := [f"{check.name}: {check.found}" for check in result.checks if not check.ok]:
        raise InputError(f"{archive}: not fit for the upload: {'; '.join(faults)}")
    print(f"done: {result.summary(budget.limit_s)}, checked: {archive}")
    return archive
