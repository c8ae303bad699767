"""What can be known before the first step: numbers, sizes, disks."""

import shutil
from numbers import Integral
from pathlib import Path

import torch
from torch import nn

from kit.competition import DISK_LIMIT_BYTES, WORKING_DIR
from kit.errors import InputError


def checkpoint_bytes(model: nn.Module, dtype: torch.dtype | None) -> int:
    """Size of a checkpoint: tensors in the chosen type, and 40 kB for names and headers."""
    element_size = torch.empty((), dtype=dtype).element_size()
    return 40_000 + sum(
        tensor.numel() * (element_size if dtype and tensor.is_floating_point() else tensor.element_size())
        for tensor in model.state_dict().values()
    )


def check_count(n_checkpoints: int) -> None:
    """InputError where it is no number of checkpoints."""
    if not isinstance(n_checkpoints, Integral) or n_checkpoints < 1:
        raise InputError(f"n_checkpoints is {n_checkpoints!r}: a submission needs a whole number, 1 at least")


def check_disk(needs: dict[Path, int]) -> None:
    """InputError where a disk cannot hold what is still to be written: bytes by folder, which may share a disk."""
    for disk in {folder.stat().st_dev for folder in needs}:
        folders = [folder for folder in needs if folder.stat().st_dev == disk]
        needed, free = sum(needs[folder] for folder in folders), shutil.disk_usage(folders[0]).free
        if WORKING_DIR in folders and needs[WORKING_DIR] > DISK_LIMIT_BYTES:  # whatever the disk holds
            folders, needed, free = [WORKING_DIR], needs[WORKING_DIR], DISK_LIMIT_BYTES
        if free < needed:
            what = " and ".join(f"{needs[folder] / 1e9:.1f} GB in {folder}" for folder in folders if needs[folder])
            raise InputError(
                f"{folders[0]}: {free / 1e9:.1f} GB free, still to be written are {what}: store float16, or choose "
                "other folders"
            )
