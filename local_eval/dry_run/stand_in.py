"""The data of a dry run: a small input tree with a trained ResNet-18, and the retrained models to score against."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

import data_stubs
from data_stubs.kaggle_tree import write_tree
from data_stubs.parts import Part
from kit.competition import SPLITS, load_original, read_rows, read_split
from kit.errors import InputError
from local_eval.retrained import fill_retrained
from local_eval.setting import Setting, Workspace, keep_workspace, reopen

N_HELD_OUT = 200  # validation and test images each, of those that the source has
N_TRAIN, FORGET, EPOCHS = 400, "random:40", 4.0  # an original and 8 retrained models in about a minute
N_CHECKED = 256  # retain images on which BatchNorm statistics are looked at


@dataclass(frozen=True)
class StandIn:
    """An input tree. sizes: split -> number of examples; original: state dict; images: some of the retain set, uint8
    (n, 3, height, width); workspace: None where there is nothing to score against; own: is it the small one that is
    made for the checks, on which a score says little?"""

    tree: Path
    sizes: Mapping[str, int]
    original: Mapping[str, Tensor]
    images: Tensor
    workspace: Workspace | None
    own: bool = False


def stand_in(
    data: str,
    work_dir: Path,
    *,
    setting: Path | None = None,
    n_models: int,
    devices: Sequence[str] = (),
    progress: bool,
    **options,
) -> StandIn:
    """The stand-in of a source, of an earlier run's setting, or an input tree as it is.

    data: a source as `data_stubs.load` takes it, or the path of an input tree; setting: folder of a setting with
    ResNet-18. n_models retrained models are trained where the data can be scored and they are missing; devices: a
    process for each entry.
    """
    tree = Path(data)
    if setting is None and (tree / f"{SPLITS[0]}.csv").is_file():
        if given := [name for name in ("n_train", "forget", "epochs") if name in options]:
            words = " ".join(f"--{name.replace('_', '-')}" for name in given)
            raise InputError(f"{words}: {tree} is an input tree, which is taken as it is: leave it out")
        return described(tree, None)
    workspace = reopen(setting) if setting else _small_workspace(data, work_dir, progress=progress, **options)
    if workspace.setting.architecture != "resnet18":
        raise InputError(
            f"{workspace.folder}: its models are {workspace.setting.architecture}: competition notebooks load resnet18"
        )
    fill_retrained(workspace, n_models, devices=devices, progress=progress)
    tree = workspace.folder / "tree"
    if not tree.exists():
        write_tree(workspace.splits, workspace.original().state_dict(), tree)
    return replace(described(tree, workspace), own=setting is None)


def _small_workspace(
    source: str, work_dir: Path, *, n_train: int = N_TRAIN, forget: str = FORGET, epochs: float = EPOCHS, **options
) -> Workspace:
    """A small setting with the competition's architecture and recipe and few held-out images; nothing is trained."""
    setting = Setting(
        source=source,
        forget=forget,
        n_train=n_train,
        architecture="resnet18",
        recipe="competition",
        epochs=epochs,
        n_retain_sample=N_HELD_OUT,
    )
    splits = data_stubs.load(source, forget=forget, n_train=n_train, **options)
    splits = replace(splits, validation=_some(splits.validation), test=_some(splits.test))
    return keep_workspace(setting, splits, work_dir)


def _some(part: Part) -> Part:
    """Examples spread evenly over a part, which may be sorted by class."""
    return part.take(np.unique(np.linspace(0, len(part) - 1, N_HELD_OUT).astype(int)))


def described(tree: Path, workspace: Workspace | None) -> StandIn:
    sizes = {split: len(read_rows(tree / f"{split}.csv")) for split in SPLITS}
    retain = read_split(tree, SPLITS[0], progress=False)
    return StandIn(tree, sizes, load_original(tree).state_dict(), retain.images[:N_CHECKED], workspace)
