"""What can be known before the first step: device, disk, input and output folder. Fails in second 1, with remedy."""

import shutil
import tempfile
from pathlib import Path

import torch
from torch import nn

from kit.competition import ARCHIVE_NAME, CLASS_WEIGHTS_FILE, MODEL_FILE, SPLITS, image_path, read_rows
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
    element_size = torch.empty((), dtype=dtype).element_size()
    per_checkpoint = sum(
        tensor.numel() * (element_size if dtype and tensor.is_floating_point() else tensor.element_size())
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
    partial = out / f"{ARCHIVE_NAME}.partial"
    written = partial.stat().st_size if partial.exists() else 0
    if (free := shutil.disk_usage(out).free) + written < needed_bytes:
        raise InputError(
            f"{out}: {free / 1e9:.1f} GB free, the archive needs {needed_bytes / 1e9:.1f} GB: "
            "save as --dtype float16, or choose another disk"
        )
    return out


def check_tree(root: Path) -> int:
    """How many images the input tree has; InputError, naming the first fault, unless tables, images and model are
    all there. Nothing is decoded."""
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder: add the competition's data to the notebook")
    for name in (MODEL_FILE, CLASS_WEIGHTS_FILE):
        if not (root / name).is_file():
            raise InputError(f"{root / name}: is missing: add the competition's data again")
    wanted = {image_path(root, row["image_id"]) for split in SPLITS for row in read_rows(root / f"{split}.csv")}
    there = {path for folder in {path.parent for path in wanted} if folder.is_dir() for path in folder.iterdir()}
    if missing := sorted(wanted - there):
        raise InputError(
            f"{missing[0]}: image is missing, one of {len(missing)} of {len(wanted)}: add the competition's data again"
        )
    return len(wanted)
