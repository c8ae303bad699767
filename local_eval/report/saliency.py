"""Class-activation maps: which pixels speak for the label, in the original, an unlearned and a retrained model."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.device import device_of
from kit.errors import InputError
from local_eval.pool import ModelPool
from local_eval.recipes import GIVEN
from local_eval.retrained import retrained_pool
from local_eval.setting import Workspace


@dataclass(frozen=True)
class Maps:
    """One model's maps, float32 (n_images, height, width) in 0..1, and its probability of each label (n_images,)."""

    maps: np.ndarray
    probability: np.ndarray


def class_activation(net: nn.Module, images: Tensor, labels: Tensor) -> Maps:
    """Where the evidence for each label lies: relu(sum over channels of activation * positive gradient), at most 1.

    images: float32 (n, C, H, W) of values 0..255; labels (n,). Taken at the input of the last convolution whose map has
    at least a quarter of the image's side: deeper maps of such small images have no places left. InputError where
    the net has no convolution. Source: Jiang et al. 2021, LayerCAM, equations 3 to 5.
    """
    net.eval()
    images, labels = images.to(device_of(net)), labels.to(device_of(net))
    layer = _layer(net, images)
    kept: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        kept.append(inputs[0].detach().requires_grad_())
        return (kept[-1], *inputs[1:])

    handle = layer.register_forward_pre_hook(keep)
    try:
        with torch.enable_grad():
            logits = net(images).float()
            (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), kept[-1])
    finally:
        handle.remove()
    activation = F.relu((F.relu(gradient) * kept[-1].detach()).sum(1, keepdim=True))
    maps = F.interpolate(activation.float(), images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    maps = maps / maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    probability = logits.detach().softmax(1).gather(1, labels[:, None])[:, 0]
    return Maps(maps.cpu().numpy(), probability.cpu().numpy())


def _layer(net: nn.Module, images: Tensor) -> nn.Module:
    found: list[nn.Module] = []
    side = images.shape[-1]

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if 4 * inputs[0].shape[-1] >= side and module not in found:
            found.append(module)

    handles = [m.register_forward_pre_hook(note) for m in net.modules() if isinstance(m, nn.Conv2d)]
    try:
        with torch.no_grad():
            net(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise InputError("class-activation maps need a net with convolutions")
    return found[-1]


@dataclass(frozen=True)
class Nets:
    """Models by what they are, and a sentence for each that could not be had."""

    nets: dict[str, nn.Module]
    missing: tuple[str, ...]


def nets_of(workspace: Workspace, pool: ModelPool) -> Nets:
    """The original model, model 0 of a pool and retrained model 0; those that were not kept are left out, with a
    sentence."""
    nets: dict[str, nn.Module] = {}
    missing = []
    try:
        nets["original"] = workspace.original()
    except InputError:
        given = workspace.setting.recipe.startswith(GIVEN) and not workspace.original_path.exists()
        why = "it was not given" if given else f"{workspace.original_path} is damaged or gone"
        missing.append(f"The original model is left out: {why}.")
    for name, models in (("unlearned", pool), ("retrained", retrained_pool(workspace))):
        try:
            nets[name] = models.first_model(workspace.net())
        except InputError as error:
            missing.append(f"The {name} model is left out: {error}.")
    return Nets(nets, tuple(missing))
