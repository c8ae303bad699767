"""Architectures of the stand-in experiments. All take images of values 0..255, as the competition's models do."""

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.errors import InputError, first_line
from kit.tools.own import build_own_net, is_file_spec


def resnet18(n_classes: int = 10) -> nn.Module:
    """The competition's: torchvision's ResNet-18 without pretrained weights."""
    from torchvision.models import resnet18 as torchvision_resnet18  # here: importing torchvision takes seconds

    return torchvision_resnet18(weights=None, num_classes=n_classes)


def resnet18_narrow(n_classes: int = 10) -> nn.Module:
    """A ResNet-18 at width 16 instead of 64, of torchvision's structure and initialisation: the competition's kind of
    net at a price that a CPU can pay."""
    from torchvision.models.resnet import BasicBlock, ResNet

    width = 16

    class Narrow(ResNet):
        def _make_layer(self, block, planes, *args, **options):
            if planes == 64:  # the first stage: the stem is narrow as well, see below
                self.inplanes = width
            return super()._make_layer(block, planes * width // 64, *args, **options)

    net = Narrow(BasicBlock, [2, 2, 2, 2], num_classes=n_classes)
    net.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.bn1, net.fc = nn.BatchNorm2d(width), nn.Linear(8 * width, n_classes)
    for module in net.layer4.modules():  # of images of 32 x 32 it sees 2 x 2 pixels and one
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.__class__ = OnePixelConv2d
    return net


class OnePixelConv2d(nn.Conv2d):
    """A 3x3 convolution of padding 1. Where one pixel comes out, all taps but those on the map meet zeros: the others
    are left out, which shortens a training step of `resnet18_narrow`."""

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if max(height, width) > min(self.stride):
            return super().forward(images)
        taps = self.weight[:, :, 1 : 1 + height, 1 : 1 + width]
        return F.linear(images.flatten(1), taps.flatten(1), self.bias)[:, :, None, None]


class SmallConv(nn.Module):
    """Three conv-pool-BatchNorm-ReLU stages on pixel-unshuffled input, global max pooling, a linear layer.

    Made for one CPU core: pixel-unshuffle moves the first convolution to half the resolution, and pooling before
    BatchNorm and ReLU quarters their work. Images of any even size of at least 16 pixels.
    """

    def __init__(self, channels: tuple[int, int, int], n_classes: int = 10):
        super().__init__()
        widths = (12, *channels)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(n_out), nn.ReLU()
                )
                for n_in, n_out in zip(widths, channels, strict=False)
            )
        )
        self.fc = nn.Linear(channels[-1], n_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stages(F.pixel_unshuffle(_centred(images), 2))
        return self.fc(features.amax((2, 3))) * 0.2  # larger weights, smaller relative steps: 0.6 points more accurate


def smallconv(n_classes: int = 10) -> nn.Module:
    """32-64-128 channels, 97,354 parameters."""
    return SmallConv((32, 64, 128), n_classes)


def tinyconv(n_classes: int = 10) -> nn.Module:
    """16-32-64 channels, for quick runs."""
    return SmallConv((16, 32, 64), n_classes)


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut (option A: subsampled, padded with zero channels)."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.stride, self.n_padding = stride, n_out - n_in

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.n_padding))
        return F.relu(out + shortcut)


class ResNet20(nn.Module):
    """The ResNet-20 for 32x32 images of He et al. 2016 (section 4.2, n = 3): 269,722 parameters for ten classes."""

    def __init__(self, n_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        plan = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
        self.blocks = nn.Sequential(*(_BasicBlock(*arguments) for arguments in plan))
        self.fc = nn.Linear(64, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(F.relu(self.bn1(self.conv1(_centred(images)))))
        return self.fc(features.mean((2, 3)))


def resnet20(n_classes: int = 10) -> nn.Module:
    """ResNet-20 with He's initialisation of the convolutions."""
    net = ResNet20(n_classes)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def _centred(images: Tensor) -> Tensor:
    """Values 0..255 brought to about zero mean and unit variance; inside the net, so that inputs stay 0..255."""
    return (images - 127.5) * (1 / 64)


ARCHITECTURES: dict[str, Callable[[int], nn.Module]] = {
    "resnet18": resnet18,
    "resnet18_narrow": resnet18_narrow,
    "resnet20": resnet20,
    "smallconv": smallconv,
    "tinyconv": tinyconv,
}


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """InputError unless the name is known or is that of a file."""
    if name in known or is_file_spec(name):
        return
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise InputError(f"{what} {name!r}: unknown: {hint}known are {', '.join(known)}, file.py:function")


def check_net(net: nn.Module, image_shape: Sequence[int], n_classes: int, what: str) -> None:
    """InputError unless the net takes images (channels, height, width) and gives a number for each class."""
    shown = " x ".join(map(str, image_shape))
    try:
        with torch.no_grad():
            found = net.eval()(torch.full((2, *image_shape), 127.0))
    except Exception as error:  # whatever a net raises that is given another image than it takes
        raise InputError(
            f"{what}: takes no images of {shown}: {first_line(error)}: use another --size, or another net"
        ) from error
    if not isinstance(found, Tensor) or found.shape != (2, n_classes):
        shape = tuple(found.shape[1:]) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"{what}: gives {shape} for an image of {shown}: expected {n_classes} numbers, one a class")


def build(architecture: str, n_classes: int, seed: int | None = None) -> nn.Module:
    """A freshly initialised net of a name or of a user's `file.py:function`; with `seed` the same one each time.
    InputError for an unknown name, and as `build_own_net` raises it."""
    check_name("architecture", architecture, ARCHITECTURES)
    if seed is not None:
        torch.manual_seed(seed)
    if is_file_spec(architecture):
        return build_own_net(architecture, n_classes)
    return ARCHITECTURES[architecture](n_classes)
