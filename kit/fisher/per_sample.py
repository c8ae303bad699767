"""Per-sample gradients as factors, layer by layer, caught by hooks in one forward and one backward pass.

The gradient of sample i in a weight matrix is a sum of outer products over the positions l at which the layer reads
its input, g_i = sum_l left[i, l] right[i, l]^T, output gradient times input: one position for a linear layer, the
pixels of the output for a convolution. Sums, squares and inner products of such gradients come from the factors,
without a backward pass per sample.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from kit.errors import InputError

FEW_POSITIONS = 4  # up to here pairs of positions cost less than gradients written out

Visit = Callable[..., None]  # of a layer's prefix, the layer, and the tensors that `factors` takes


@dataclass(frozen=True)
class Outer:
    """Gradients g_i = sum_l left[i, l] right[i, l]^T of n samples, each (n_out, n_in), in a slot of one parameter.

    left: (n, n_positions, n_out). right: (n * k, ...) with n_positions * n_in numbers for each of the n, often an
    overlapping view without memory of its own. slot: these entries of a tensor (..., *the parameter's shape), a view
    whose last dimensions count n_out * n_in.
    """

    parameter: str
    left: Tensor
    right: Tensor
    slot: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.left)

    @property
    def n_positions(self) -> int:
        return self.left.shape[1]

    @property
    def n_out(self) -> int:
        return self.left.shape[2]

    @property
    def n_in(self) -> int:
        return self.right[: len(self.right) // len(self)].numel() // self.n_positions

    def inputs(self, start: int = 0, stop: int | None = None) -> Tensor:
        """right of the samples start to stop, (stop - start, n_positions, n_in)."""
        stop = len(self) if stop is None else min(stop, len(self))
        each = len(self.right) // len(self)
        return self.right[start * each : stop * each].reshape(stop - start, self.n_positions, -1)

    def chunks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(left^T, right) of `size` samples at a time: (n', n_out, n_positions) and (n', n_positions, n_in)."""
        for start in range(0, len(self), max(1, size)):
            stop = start + max(1, size)
            yield self.left[start:stop].transpose(1, 2), self.inputs(start, stop)

    def channels(self, start: int, stop: int) -> "Outer":
        """The same gradients in these rows of the parameter only."""
        return replace(self, left=self.left[:, :, start:stop])

    def batch_means(self, size: int) -> "Outer":
        """The means of each `size` gradients in turn: more positions, fewer rows. size must divide n."""
        left = self.left.reshape(len(self) // size, size * self.n_positions, self.n_out)
        return replace(self, left=left / size if size > 1 else left)


def sums(part: Outer) -> Tensor:
    """sum_i g_i, (n_out, n_in), in float32 or better."""
    total = part.left.new_zeros(part.n_out, part.n_in, dtype=torch.promote_types(part.left.dtype, torch.float32))
    for left, right in part.chunks(_cached(part.left) // (part.n_positions * part.n_in)):
        total += left.transpose(1, 2).flatten(0, 1).T @ right.flatten(0, 1)
    return total


def squares(part: Outer) -> Tensor:
    """sum_i g_i^2, elementwise, (n_out, n_in)."""
    if part.n_positions <= FEW_POSITIONS:
        # (sum_l a_l b_l)^2 = sum over pairs l <= k of (a_l a_k)(b_l b_k), twice where l < k: one matrix product
        first, second = torch.triu_indices(part.n_positions, part.n_positions, device=part.left.device)
        times = (1 + (first != second)).to(part.left.dtype)[:, None]
        left, right = part.left, part.inputs()
        pairs = left[:, first] * left[:, second] * times
        total = pairs.flatten(0, 1).T @ (right[:, first] * right[:, second]).flatten(0, 1)
        return total.clamp_(min=0)  # terms of both signs cancel up to rounding
    total = part.left.new_zeros(part.n_out, part.n_in)
    for left, right in part.chunks(_cached(part.left) // (part.n_in * max(part.n_positions, part.n_out))):
        gradients = torch.bmm(left, right)
        if len(gradients) == 1:  # squared where it was just written, in the cache
            total.addcmul_(gradients[0], gradients[0])
        else:
            total += gradients.square_().sum(0)
    return total


def _cached(like: Tensor) -> int:
    """Numbers in a working set: what a CPU core's cache holds, or what keeps a GPU busy."""
    return 2**18 if like.device.type == "cpu" else 2**26


def forward(net: nn.Module, images: Tensor, layers: dict[str, nn.Module], visit: Visit) -> Tensor:
    """Logits of `images`, whose backward pass calls visit(prefix, module, *found) for each layer, found being what
    `factors` takes: two tensors, the first dimension of each the samples.

    Parameters take no part in the graph: no gradient is left in them, whatever their requires_grad. Raises InputError
    where a layer does not run once on these samples.
    """
    calls = Counter[str]()

    def tap(prefix: str) -> Callable[[nn.Module, tuple, Tensor], Tensor]:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            calls[prefix] += 1 if len(args[0]) == len(images) else 2
            x = args[0].detach().to(output.dtype)
            if not output.requires_grad:  # the first layer: a copy, as a leaf may not be changed in place afterwards
                output = output.requires_grad_().clone()
            output.register_hook(lambda gradient: visit(prefix, module, *_found(module, x, gradient)))
            return output

        return hook

    handles = [module.register_forward_hook(tap(prefix)) for prefix, module in layers.items()]
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    try:
        with torch.enable_grad():
            logits = functional_call(net, parameters, (images,))
    finally:
        for handle in handles:
            handle.remove()
    for prefix, module in layers.items():
        if calls[prefix] != 1:
            raise InputError(
                f"{prefix[:-1]} ({type(module).__name__}) does not run once on every sample, as it did on the first: "
                "per-sample gradients need a net that does the same whatever the batch"
            )
    return logits


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; each module's own mode afterwards."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _found(module: nn.Module, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output gradient; of BatchNorm the gradients of weight and bias, (n, channels), which are smaller."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return x, gradient
    channels = (1, -1) + (1,) * (x.ndim - 2)
    centred = (x - module.running_mean.view(channels)).mul_(gradient)
    weight, bias = (tensor.reshape(*x.shape[:2], -1).sum(2) for tensor in (centred, gradient))
    return weight * torch.rsqrt(module.running_var + module.eps), bias


def factors(prefix: str, module: nn.Module, first: Tensor, second: Tensor) -> Iterator[Outer]:
    """The gradients of a known layer's parameters, from what `forward` hands to its visitor."""
    if isinstance(module, nn.Conv2d):
        yield from _convolution(f"{prefix}weight", module, first, second)
        bias = second.flatten(2).sum(2)
    elif isinstance(module, nn.Linear):
        left = second.reshape(len(first), -1, module.out_features)
        yield Outer(f"{prefix}weight", left, first.reshape(len(first), -1, module.in_features), lambda tensor: tensor)
        bias = left.sum(1)
    else:
        yield _vectors(f"{prefix}weight", first)
        bias = second
    yield _vectors(f"{prefix}bias", bias)


def other_factors(
    net: nn.Module, images: Tensor, output_gradients: Tensor, names: Sequence[str], size: int = 1
) -> Iterator[Outer]:
    """The gradients of the parameters `names` by a backward pass for each `size` samples in turn, their sum being one
    gradient: right for layers of any kind. output_gradients: (n, n_classes)."""
    parameters = [net.get_parameter(name) for name in names]
    if not parameters:
        return
    with torch.enable_grad():
        rows = [
            _gradients(net(some), parameters, gradient)
            for some, gradient in zip(images.split(size), output_gradients.split(size), strict=True)
        ]
    for name, parameter, gradients in zip(names, parameters, zip(*rows, strict=True), strict=True):
        zeros = torch.zeros_like(parameter)
        found = torch.stack([zeros if gradient is None else gradient for gradient in gradients])
        yield _vectors(name, found.reshape(len(found), -1))


def _gradients(logits: Tensor, parameters: Sequence[Tensor], gradient: Tensor) -> Sequence[Tensor | None]:
    if not logits.requires_grad:  # all that is not frozen is detached from them
        return [None] * len(parameters)
    return torch.autograd.grad(logits, parameters, gradient, allow_unused=True)


def _vectors(parameter: str, gradients: Tensor) -> Outer:
    """Gradients (n, d) of a whole parameter of d entries: one position, one input that is 1."""
    return Outer(parameter, gradients[:, None], gradients.new_ones(len(gradients), 1), lambda tensor: tensor)


def _convolution(parameter: str, module: nn.Conv2d, x: Tensor, gradient: Tensor) -> Iterator[Outer]:
    """As one matrix of unfolded patches; for an output of few pixels, where patches are mostly padding, each tap of
    the kernel as a matrix of its own over the pixels it touches."""
    x, left = x.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = module.kernel_size, module.stride, module.padding, module.dilation
    if left.shape[1] * left.shape[2] > FEW_POSITIONS:
        x = F.pad(x, (0, 0, pw, pw, ph, ph)).unfold(1, (kh - 1) * dh + 1, sh).unfold(2, (kw - 1) * dw + 1, sw)
        patches = x[..., ::dh, ::dw].permute(0, 1, 2, 4, 5, 3)  # (n, rows, columns, kh, kw, channels)
        yield Outer(parameter, left.flatten(1, 2), patches, lambda tensor: tensor.movedim(-3, -1))
        return
    for a in range(kh):
        out_rows, in_rows = _touched(x.shape[1], left.shape[1], sh, a * dh - ph)
        for b in range(kw):
            out_columns, in_columns = _touched(x.shape[2], left.shape[2], sw, b * dw - pw)
            part = left[:, out_rows, out_columns].flatten(1, 2)
            if part.shape[1]:
                slot = _tap_slot(a, b)
                yield Outer(parameter, part, x[:, in_rows, in_columns].flatten(1, 2), slot)


def _touched(n_in: int, n_out: int, stride: int, offset: int) -> tuple[slice, slice]:
    """The output pixels o along one axis that read an input pixel o * stride + offset, and these input pixels."""
    first = max(0, -(offset // stride))
    end = max(first, min(n_out, (n_in - 1 - offset) // stride + 1))
    return slice(first, end), slice(first * stride + offset, max(0, (end - 1) * stride + offset + 1), stride)


def _tap_slot(a: int, b: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor[..., a, b]
