"""What the checkpoints' BatchNorm statistics are worth: recorded against those of the data."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from kit.competition import resnet18
from kit.tools.verify import is_folder, largest_checkpoint, read_bounded


@dataclass(frozen=True)
class Statistics:
    """How far recorded statistics lie from a batch's, the worst layer of a net. layer: its name; shift: in standard
    deviations; ratio: of the variances, the larger over the smaller; medians over channels."""

    layer: str
    shift: float
    ratio: float


@torch.no_grad()
def statistics_of(net: nn.Module, images: Tensor) -> Statistics:
    """Statistics of `net`, whose BatchNorm layers are fed what they would be fed in training; net stays as it is.

    images: (n, channels, height, width), values 0..255.
    """
    layers = {name: module for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    found: list[Statistics] = []

    def hook_for(name: str):
        def look(layer: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
            var, mean = torch.var_mean(inputs[0].float(), (0, 2, 3))
            var, recorded = var.clamp(min=layer.eps), layer.running_var.clamp(min=layer.eps)
            shift = ((layer.running_mean - mean).abs() / var.sqrt()).median()
            ratio = (recorded / var).log().abs().median().exp()
            found.append(Statistics(name, float(shift), float(ratio)))

        return look

    hooks = [module.register_forward_pre_hook(hook_for(name)) for name, module in layers.items()]
    momenta = {name: module.momentum for name, module in layers.items()}
    training = net.training
    try:
        for module in layers.values():
            module.momentum = 0.0  # the statistics are used up by a forward pass, but not changed
        net.train()(images.float())
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
        for name, module in layers.items():
            module.momentum = momenta[name]
            module.num_batches_tracked -= 1
    return max(found, key=lambda one: max(one.shift, one.ratio), default=Statistics("", 0.0, 1.0))


def archive_statistics(
    archive: Path, original: Mapping[str, Tensor], images: Tensor, *, progress: bool = False
) -> tuple[Statistics, list[tuple[str, Statistics]]]:
    """Of the original model, and of each checkpoint of an archive by member name; what cannot be loaded is left out."""
    net = resnet18()
    net.load_state_dict(original)
    reference = statistics_of(net, images)
    found = []
    with zipfile.ZipFile(archive) as file:
        members = [info for info in file.infolist() if not is_folder(info)]
        reader = read_bounded(file, members, largest_checkpoint(original))
        for info, state in tqdm(reader, total=len(members), desc="BatchNorm", disable=not progress):
            try:
                net.load_state_dict({name: t.to(original[name].dtype) for name, t in state.items()})
            except (AttributeError, RuntimeError, KeyError):
                continue
            found.append((info.filename, statistics_of(net, images)))
    return reference, found
