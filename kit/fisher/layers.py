"""Which layers of a net give their per-sample gradients as factors, and which gives the logits: found by following
what the net computes.

A layer taken for one of them by mistake would give wrong numbers without a word. All others go through a backward pass
for each sample, which is right for layers of any kind.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from kit.errors import InputError


def known_layers(net: nn.Module, images: Tensor) -> dict[str, nn.Module]:
    """The layers whose gradients `factors` gives, by the prefix of their parameters' names ("layer1.0.conv1."), found
    by passes of one and of two images.

    Left out, for `other_factors`, are layers of other kinds, whose input or output does not have the samples as first
    dimension, not run or run twice, those that share a parameter, whose parameters are used elsewhere too, that do
    something else than their class does, and those that the logits are detached from. Raises InputError where
    BatchNorm ties samples together.
    """
    owners = Counter(id(p) for module in net.modules() for p in module.parameters(recurse=False))
    candidates = {f"{name}." if name else "": module for name, module in net.named_modules()}
    candidates = {
        prefix: module
        for prefix, module in candidates.items()
        if _is_known(prefix, module) and all(owners[id(p)] == 1 for p in module.parameters(recurse=False))
    }
    for n in (1, 2):
        some = images[:1].repeat(n, *(1,) * (images.ndim - 1))
        candidates = {prefix: candidates[prefix] for prefix in _plain_layers(net, some, candidates)}
    return candidates


def head(net: nn.Module, images: Tensor) -> list[str]:
    """The names of the parameters of the layer that gives the logits: of those with a row for each class, the one
    nearest to the logits in what the net computes, wherever it is registered. None where no layer has such rows."""
    parameters = _differentiable(net)
    names = {id(parameter): name for name, parameter in parameters.items()}
    with torch.enable_grad():
        logits = functional_call(net, parameters, (images[:1],))
        near = [names[key] for key in _leaves(logits, {}) if key in names]
    near = [name for name in near if parameters[name].ndim and len(parameters[name]) == logits.shape[1]]
    return [name for name in near if name.rpartition(".")[0] == near[0].rpartition(".")[0]]


def _differentiable(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().requires_grad_() for name, parameter in net.named_parameters()}


def _is_known(prefix: str, module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        raise InputError(
            f"{prefix[:-1] or 'the net'} ({type(module).__name__}) keeps no running statistics, so that the samples of "
            "a batch depend on each other: per-sample gradients need track_running_stats=True"
        )
    if not {name for name, _ in module.named_parameters(recurse=False)} <= {"weight", "bias"}:
        return False
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) in (nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)


def _by_formula(module: nn.Module, images: Tensor) -> Tensor:
    """What a layer of its kind gives; a convolution may be of a class that computes the same in another way."""
    if isinstance(module, nn.Conv2d):
        return F.conv2d(images, module.weight, module.bias, module.stride, module.padding, module.dilation)
    return type(module).forward(module, images)


def _plain_layers(net: nn.Module, images: Tensor, candidates: dict[str, nn.Module]) -> list[str]:
    """The candidates that run once, on these samples, as their class does, and through which alone their parameters
    reach the logits.

    Each one's output is cut off from what is before it. A walk back from the logits, which at each cut goes on with
    the layer's input, then finds the layers that count, and the parameters that are used elsewhere.
    """
    parameters = _differentiable(net)
    calls, cuts = Counter[str](), {}

    def cutting(prefix: str) -> Callable[[nn.Module, tuple, Tensor], Tensor]:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            calls[prefix] += 1
            if not torch.is_grad_enabled() or not args or not len(args[0]) == len(images) == len(output):
                return output
            if not _same(output, _by_formula(module, args[0])):
                return output
            leaf = output.detach().requires_grad_()
            cuts[id(leaf)] = prefix, leaf, args[0]
            return leaf.clone()  # a leaf may not be changed in place afterwards

        return hook

    handles = [module.register_forward_hook(cutting(prefix)) for prefix, module in candidates.items()]
    with torch.enable_grad():
        try:
            logits = functional_call(net, parameters, (images,))
        finally:
            for handle in handles:
                handle.remove()
        found = _leaves(logits, {key: before for key, (_, _, before) in cuts.items()})
    elsewhere = {name[: name.rfind(".") + 1] for name, parameter in parameters.items() if id(parameter) in found}
    reached = {cuts[key][0] for key in found if key in cuts} - elsewhere
    return [prefix for prefix in candidates if prefix in reached and calls[prefix] == 1]


def _same(output: Tensor, expected: Tensor) -> bool:
    """Up to rounding: kernels of a GPU may differ from call to call."""
    return output.shape == expected.shape and torch.allclose(output, expected, 1e-3, 1e-5, equal_nan=True)


def _leaves(output: Tensor, behind: Mapping[int, Tensor]) -> dict[int, None]:
    """The ids of the leaves that `output` depends on, also through the tensors that stand `behind` leaves, the nearest
    first."""
    found: dict[int, None] = {}
    nodes, seen = deque([_node(output)]), set()
    while nodes:
        node = nodes.popleft()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes.extend(following for following, _ in node.next_functions)
        if hasattr(node, "variable"):
            found[id(node.variable)] = None
            if id(node.variable) in behind:
                nodes.append(_node(behind[id(node.variable)]))
    return found


def _node(tensor: Tensor) -> Any:
    """Where a walk back from a tensor begins, a leaf too; None where it needs no gradient."""
    return tensor.view_as(tensor).grad_fn
