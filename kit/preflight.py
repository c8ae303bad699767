"""What can be known before the first step: device, disk, output folder. Fails in second 1, with the remedy."""

import shutil
import tempfile
from pathlib import Path

import torch
from torch import nn

from kit.errors import InputError


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name, `auto` for the GPU where there is one; checked to run a kernel of this torch build."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        (torch.ones(2, device=device) + 1).sum().item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        hint = "switch the accelerator on, or take --device cpu"
        if torch.cuda.is_available():
            capability = "".join(map(str, torch.cuda.get_device_capability()))
            hint = f"this torch has kernels for {torch.cuda.get_arch_list()}, the GPU is sm_{capability}"
        raise InputError(f"device {name!r} cannot be used ({reason}): {hint}") from error
    return device


def archive_bytes(model: nn.Module, n_checkpoints: int, dtype: torch.dtype | None) -> int:
    """Size of the archive: tensors in the chosen type, and 40 kB a checkpoint for names and headers."""
    per_checkpoint = sum(
        tensor.numel() * (dtype.itemsize if dtype and tensor.is_floating_point() else tensor.element_size())
        for tensor in model.state_dict().values()
    )
    return n_checkpoints * (per_checkpoint + 40_000)


def check_output(out: Path, needed_bytes: int) -> Path:
    """Make the output folder; InputError where it cannot be written or the disk cannot hold the archive."""
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}): choose another output folder") from error
    if (free := shutil.disk_usage(out).free) < needed_bytes:
        raise InputError(
            f"{out}: {free / 1e9:.1f} GB free, the archive needs {needed_bytes / 1e9:.1f} GB: "
            "save as --dtype float16, or choose another disk"
        )
    return out
