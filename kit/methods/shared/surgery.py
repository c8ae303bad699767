"""Changes of the weights themselves, the impair step of many methods.

What does not require a gradient is left as it is: no training would repair it.
"""

from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kit.device import device_of
from kit.errors import InputError
from kit.fisher.layers import head
from kit.fisher.per_sample import evaluating
from kit.training import unpack

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm)


def layers(net: nn.Module) -> dict[str, nn.Module]:
    """The convolutions and linear layers by name, in the net's order. InputError where there are none."""
    found = {name: m for name, m in net.named_modules() if isinstance(m, (*_CONVOLUTIONS, nn.Linear))}
    if not found:
        raise InputError(f"{type(net).__name__} has no convolution and no linear layer: choose another method")
    return found


def first_layer(net: nn.Module) -> nn.Module:
    """conv1 of a ResNet; of other nets the first convolution, without any the first linear layer."""
    found = layers(net).values()
    return next((layer for layer in found if isinstance(layer, _CONVOLUTIONS)), next(iter(found)))


def last_layer(net: nn.Module, images: Tensor) -> nn.Module:
    """The convolution or linear layer that gives the logits, wherever it is registered: fc of a ResNet; where none
    does, the one registered last. images: what the net computes on, of which the first is enough."""
    found = list(layers(net).values())[::-1]  # of two that share the weight the later one
    with evaluating(net), torch.random.fork_rng(devices=[]):  # nothing is drawn that the method would have drawn
        names = head(net, images[:1].to(next(net.parameters()).dtype))
    nearest = {id(net.get_parameter(name)) for name in names}
    return next((layer for layer in found if any(id(p) in nearest for p in layer.parameters())), found[0])


def one_image(net: nn.Module, loader: DataLoader) -> Tensor:
    """The first image of the loader's data set, (1, C, H, W), on the net's device; no batch is drawn for it."""
    with torch.random.fork_rng(devices=[]):  # of a data set that draws
        return unpack(loader.collate_fn([loader.dataset[0]]), device_of(net))[0]


def n_classes(net: nn.Module, images: Tensor) -> int:
    """Rows of the last layer's weight."""
    return len(last_layer(net, images).weight)


def names_of_last(net: nn.Module, k: int, images: Tensor) -> set[str]:
    """Names of the parameters from the k-th last convolution or linear layer on, normalisation between them included;
    of all where there are fewer layers. The last is the one that gives the logits, the others are in the net's order;
    a parameter that two layers share counts where it is registered first."""
    if k < 1:
        raise InputError(f"k is {k}: expected a number of layers, 1 or more")
    last, names = last_layer(net, images), {id(p): name for name, p in net.named_parameters()}
    found = [*(layer for layer in layers(net).values() if layer is not last), last]
    if k > len(found):
        return set(names.values())
    end = {id(p) for p in last.parameters()}
    order = [*(key for key in names if key not in end), *(key for key in names if key in end)]
    start = min(order.index(id(p)) for p in found[-k].parameters())
    return {names[key] for key in order[start:]}


def convolutions(net: nn.Module) -> list[nn.Conv2d]:
    """Every nn.Conv2d that is trained, those of shortcuts too; of those that share a weight one. InputError where there
    are none."""
    found = [module for module in net.modules() if isinstance(module, nn.Conv2d) and module.weight.requires_grad]
    found = list({id(module._parameters.get("weight", module)): module for module in found}.values())
    if not found:
        raise InputError(
            f"{type(net).__name__} has no nn.Conv2d that is trained, and this method changes their weights: choose "
            "another method"
        )
    return found


def in_shortcut(name: str) -> bool:
    """Does a module or parameter belong to a projection shortcut, by the names that ResNets give it?"""
    return "downsample" in name or "shortcut" in name


def norm_names(net: nn.Module) -> set[str]:
    """Names of the normalisation layers' parameters but for those in shortcuts: in torchvision's ResNets the tensors
    with "bn" in their name, by which several of the competition's entries tell them."""
    norms = [name for name, module in net.named_modules() if isinstance(module, _NORMS) and not in_shortcut(name)]
    return {name for name, _ in net.named_parameters() if name.rpartition(".")[0] in norms}


def trained(parameters: Iterable[Tensor]) -> Iterator[Tensor]:
    """Those that require a gradient; of tensors that are no parameters all."""
    return (p for p in parameters if p.requires_grad or not isinstance(p, nn.Parameter))


@torch.no_grad()
def add_noise(net: nn.Module, beta: float) -> None:
    """Add N(0, (beta * sigma)^2) to every parameter in place, sigma the standard deviation of its tensor's entries
    (0 for a tensor of one entry)."""
    for parameter in trained(net.parameters()):
        sigma = parameter.std(unbiased=False)
        # Drawn on the CPU: the same seed gives the same noise on every device.
        noise = torch.randn(parameter.shape, dtype=parameter.dtype).to(parameter.device)
        parameter.add_(noise * (beta * sigma))


@torch.no_grad()
def add_normal(parameters: Iterable[Tensor], std: float) -> None:
    """Add N(0, std^2) to every entry in place, drawn on the CPU."""
    for parameter in trained(parameters):
        parameter.add_(std * torch.randn(parameter.shape, dtype=parameter.dtype).to(parameter.device))


def smallest(values: Tensor, share: float) -> Tensor:
    """Mask of the round(share * n) smallest of n values; of equal ones the first in order."""
    _check_share(share)
    flat, n_chosen = values.flatten(), round(share * values.numel())
    if n_chosen == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    limit = flat.kthvalue(n_chosen).values
    mask = flat < limit
    mask[(flat == limit).nonzero()[: n_chosen - int(mask.sum()), 0]] = True
    return mask.view(values.shape)


def check_at_least(least: int, **values: float) -> None:
    """InputError for a hyper-parameter, given by its name, below `least`."""
    for name, value in values.items():
        if not value >= least:
            raise InputError(f"{name} is {value}: expected {least} or more")


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise InputError(f"share is {share}: expected a share of the weights from 0 to 1")


@torch.no_grad()
def replace_where(mask: Tensor, parameter: Tensor, fresh: Tensor) -> None:
    """Put the entries of `fresh`, drawn on the CPU, in place of the masked ones."""
    parameter.copy_(torch.where(mask, fresh.to(parameter.device), parameter))


@torch.no_grad()
def zero_at_random(parameters: Iterable[Tensor], share: float) -> None:
    """Zero every entry with the probability `share`, drawn on the CPU."""
    _check_share(share)
    for parameter in trained(parameters):
        parameter.mul_((torch.rand(parameter.shape) >= share).to(parameter))


@torch.no_grad()
def transpose_kernels(net: nn.Module) -> None:
    """Swap height and width in the kernels of every nn.Conv2d, those of shortcuts too; others than square ones stay."""
    square = [conv.weight for conv in convolutions(net) if conv.kernel_size[0] == conv.kernel_size[1] > 1]
    if not square:
        raise InputError(
            f"{type(net).__name__} has no square kernel that is trained, and this method transposes those: choose "
            "another method"
        )
    for weight in square:
        weight.copy_(weight.transpose(2, 3).clone())


@torch.no_grad()
def round_to(net: nn.Module, dtype: torch.dtype) -> None:
    """Round weights and statistics to what `dtype` can tell apart; a tensor with an entry too large for it stays."""
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    for tensor in (tensor for name, tensor in net.state_dict().items() if name not in frozen):
        rounded = tensor.to(dtype)
        if tensor.is_floating_point() and torch.isfinite(rounded).all():
            tensor.copy_(rounded)


@contextmanager
def training_only(net: nn.Module, names: Set[str]) -> Iterator[None]:
    """Inside, only the parameters of these names require a gradient, if they did before."""
    others = [p for name, p in net.named_parameters() if p.requires_grad and name not in names]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


@torch.no_grad()
def redraw(net: nn.Module, kept: float = 0.0) -> None:
    """Draw every parameter of two or more dimensions anew from N(0, rms^2), rms the root mean square of its entries,
    on the CPU. It fits any net: sizes stay those that training gave, biases and normalisation stay as they are.

    kept, from 0 to 1: the old entries' share in the new ones, whose root mean square stays (Ash and Adams 2020).
    """
    for parameter in trained(net.parameters()):
        if parameter.dim() > 1:
            fresh = torch.randn(parameter.shape, dtype=parameter.dtype) * parameter.square().mean().sqrt().cpu()
            parameter.mul_(kept).add_(((1 - kept**2) ** 0.5 * fresh).to(parameter))


@torch.no_grad()
def reset_layer(layer: nn.Module) -> None:
    """Draw a layer's weights anew by its own `reset_parameters`, but for frozen ones; nothing where all are."""
    frozen = [(p, p.clone()) for p in layer.parameters() if not p.requires_grad]
    if frozen and len(frozen) == len(list(layer.parameters())):
        return
    layer.reset_parameters()
    for parameter, old in frozen:
        parameter.copy_(old)


def reset_parameters(net: nn.Module, names: Set[str] | None = None) -> None:
    """Draw the weights of every layer anew in place, by the layer's own `reset_parameters`; BatchNorm also forgets
    its statistics. names: only layers with parameters of these names.

    What a net's constructor does to its layers afterwards (torchvision's ResNets scale their convolutions) is not
    repeated. Raises InputError for a module with parameters of its own that cannot draw them.
    """
    for name, module in net.named_modules():
        own = {f"{name}.{one}" if name else one for one, _ in module.named_parameters(recurse=False)}
        if names is not None and not own & names:
            continue
        if hasattr(module, "reset_parameters"):
            reset_layer(module)
        elif own:
            raise InputError(
                f"{name or 'the net'} ({type(module).__name__}) has parameters but no reset_parameters: "
                "give it one, or choose a method that needs no freshly initialised net"
            )
