"""Train the original model, and N models from scratch on the retain set alone: the gold standard of unlearning."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from kit.archive import serialize
from kit.competition import ExampleDataset
from kit.device import synchronize
from kit.errors import InputError
from kit.ledger import write_atomically
from kit.seeds import checkpoint_seed, seed_everything
from local_eval.devices import processes_for
from local_eval.engines import run_all
from local_eval.pool import ModelPool, logits_of, on_device
from local_eval.setting import Workspace, as_dataset, reopen
from local_eval.shard import WHOLE, Shard

ORIGINAL = -1  # index of the original model among the jobs and in its pool


def retrained_pool(workspace: Workspace) -> ModelPool:
    return ModelPool(workspace.folder / "retrained", {"kind": "retrained", "setting": workspace.name})


def original_pool(workspace: Workspace) -> ModelPool:
    """The original model as a pool of one."""
    return ModelPool(workspace.folder / "original", {"kind": "original", "setting": workspace.name})


def fill_retrained(
    workspace: Workspace,
    n_models: int,
    *,
    shard: Shard = WHOLE,
    devices: Sequence[str] = (),
    progress: bool = True,
    on_checkpoint: Callable[[int, float], None] | None = None,
) -> ModelPool:
    """Train what is missing of the original model and of the first `n_models` retrained models (which may be 0).

    They are independent jobs of one queue, model i with the seed derived from the setting's train_seed and i; models
    that are there already are kept, whatever number was asked for before. devices: a process for each entry, by
    default as `devices_of` chooses them. shard: the part of the models to train here, where other machines that share
    the folder train the others; the first trains the original model too. on_checkpoint: called with the number (-1:
    the original) and the seconds of each model that is trained, in this process.
    """
    if todo := _missing(workspace, n_models, shard):
        what = "training the original model" if todo == [ORIGINAL] else "training original and retrained models"
        what = what if ORIGINAL in todo else "retraining"
        devices = processes_for(devices, workspace, len(todo))
        options = {"description": what, "progress": progress, "on_result": on_checkpoint}
        run_all(partial(_trainer, workspace.folder), todo, devices, **options)
    return retrained_pool(workspace)


def fill_settings(
    workspaces: Sequence[Workspace], n_models: int, *, devices: Sequence[str] = (), progress: bool = True
) -> None:
    """`fill_retrained` of several settings by one queue, so that their originals are trained at the same time."""
    todo = [(job, place) for place, workspace in enumerate(workspaces) for job in _missing(workspace, n_models)]
    if todo:
        devices = processes_for(devices, workspaces[0], len(todo))
        setup = partial(_trainer_of_settings, [workspace.folder for workspace in workspaces], sorted(todo))
        run_all(setup, range(len(todo)), devices, description="training", progress=progress)


def _missing(workspace: Workspace, n_models: int, shard: Shard = WHOLE) -> list[int]:
    """Jobs of `fill_retrained` that are left."""
    todo = shard.of(retrained_pool(workspace).missing(n_models))
    lacks_original = not workspace.original_path.exists() or 0 not in original_pool(workspace)
    return [ORIGINAL, *todo] if shard.number == 1 and lacks_original else list(todo)


def _trainer_of_settings(
    folders: Sequence[Path], jobs: Sequence[tuple[int, int]], device: str
) -> Callable[[int], float]:
    """The job of one process: job (index, place) is model `index` of the setting in folder `place`."""
    trainers: dict[int, Callable[[int], float]] = {}

    def train_one(number: int) -> float:
        index, place = jobs[number]
        if place not in trainers:
            trainers[place] = _trainer(folders[place], device)
        return trainers[place](index)

    return train_one


def _trainer(folder: Path, device: str) -> Callable[[int], float]:
    """The job of one process: train model `index` and write its logits down; gives its seconds."""
    workspace = reopen(folder)
    counts = workspace.class_counts()
    evaluated = on_device(workspace.evaluated(), device)
    retrained, original = retrained_pool(workspace), original_pool(workspace)
    retain = as_dataset(workspace.splits.retain).to(device)

    def train_one(index: int) -> float:
        dataset = as_dataset(workspace.splits.train).to(device) if index == ORIGINAL else retain
        start = time.perf_counter()
        net = train_model(workspace, dataset, checkpoint_seed(workspace.setting.train_seed, index), counts)
        synchronize(device)
        seconds = time.perf_counter() - start
        logits = logits_of(net, evaluated)
        if index == ORIGINAL:
            write_atomically(workspace.original_path, serialize(net.state_dict()))
            original.add(0, logits, seconds)
        else:
            retrained.add(index, logits, seconds, net)
        return seconds

    return train_one


def train_model(
    workspace: Workspace, dataset: ExampleDataset, seed: int, class_counts: torch.Tensor
) -> torch.nn.Module:
    """One model of the setting's architecture and recipe, on the device of the data; on one kind of device its bits
    depend on data and seed alone."""
    seed_everything(seed)
    net, recipe = workspace.net().to(dataset.images.device), workspace.recipe()
    net = recipe.fit(net, dataset, workspace.setting.n_epochs, class_counts).eval()
    if not all(torch.isfinite(tensor).all() for tensor in net.state_dict().values()):
        raise InputError(f"recipe {recipe.name}: the trained net has NaN or infinite weights: lower the learning rate")
    return net
