"""The diagonal of the Fisher information of a classifier's parameters: exact, or estimated at the cost of training.

F = 1/n sum_i E_y [g_i(y)^2], g_i(y) the gradient of -log p(y | x_i) in the parameters. Which labels y the expectation
runs over is told by a function: `true_labels` (the empirical Fisher), `sampled_labels`, `every_label` (the whole
expectation, Golatkar et al. 2020), or another of that form. Squares are taken per sample: the square of a batch's mean
gradient is another quantity (`squared_batch_means`).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.device import device_of
from kit.errors import InputError
from kit.fisher.layers import known_layers
from kit.fisher.per_sample import Outer, evaluating, factors, forward, other_factors, squares, sums
from kit.training import unpack

Labels = Callable[[Tensor, Tensor], Tensor]
Named = dict[str, Tensor]
_LARGE = 1 << 16  # entries of a matrix from which on an error bar is taken from a part of it


def true_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """The labels of the data.

    As every function of this kind: from logits (n, n_classes) and labels (n,) to output gradients b, (n_terms, n,
    n_classes), such that the sum of b b^T over the terms is a sample's Fisher in its logits, or has it as expectation.
    """
    return (logits.softmax(1) - F.one_hot(labels, logits.shape[1]).to(logits.dtype))[None]


def sampled_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """One label drawn from the model's own output: unbiased for `every_label`."""
    drawn = torch.multinomial(logits.softmax(1).cpu(), 1)[:, 0]  # on the CPU: the same seed draws the same anywhere
    return true_labels(logits, drawn.to(logits.device))


def every_label(logits: Tensor, labels: Tensor) -> Tensor:
    """All labels, weighted by the model's own probabilities: n_classes terms sqrt(p_y) g(y)."""
    p = logits.softmax(1)
    identity = torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
    return p.T.sqrt()[:, :, None] * (p - identity[:, None])


def _signed_sum(terms: Tensor) -> Tensor:
    """The terms (n_terms, n, n_classes), each with a random sign for each sample, added up: (1, n, n_classes)."""
    signs = torch.randint(0, 2, terms.shape[:2]).to(terms)  # drawn on the CPU
    return torch.einsum("tn,tnc->nc", 2 * signs - 1, terms)[None]


def diagonal(net: nn.Module, batches: Iterable[Any], labels: Labels = true_labels) -> Named:
    """Mean over the examples of the squared gradients, for each parameter that requires one, by name.

    batches: dict or tuple batches, as a loader gives them. The net runs in evaluation mode and is left as it came.
    Layers of a kind not known here go through a loop over the samples: right, but slow.
    """
    total = _zeros(net)

    def take(part: Outer) -> None:
        _add(total, part, squares(part))

    n_examples = _each_batch(net, batches, labels, take, lambda n: 1)
    return {name: tensor.div_(n_examples).contiguous() for name, tensor in total.items()}


def squared_batch_means(net: nn.Module, batches: Iterable[Any], labels: Labels = true_labels) -> Named:
    """Mean over the batches of the squared mean gradient of each, which some code takes for the diagonal Fisher: of it
    the squares have a share of about 1 / batch size, the rest is the squared mean gradient."""
    total, n_batches = _zeros(net), 0

    def mean_gradient(logits: Tensor, targets: Tensor) -> Tensor:
        nonlocal n_batches
        n_batches += 1
        return labels(logits, targets) / len(logits)

    def take(part: Outer) -> None:
        _add(total, part, sums(part).square_())

    _each_batch(net, batches, mean_gradient, take, lambda n: n)
    return {name: tensor.div_(n_batches).contiguous() for name, tensor in total.items()}


def gradient_sum(net: nn.Module, batches: Iterable[Any], labels: Labels = true_labels) -> Named:
    """Sum over the examples of the gradients, in evaluation mode, for each parameter that requires one, by name."""
    total = _zeros(net)

    def take(part: Outer) -> None:
        _add(total, part, sums(part))

    _each_batch(net, batches, labels, take, lambda n: n)
    return {name: tensor.contiguous() for name, tensor in total.items()}


@dataclass(frozen=True)
class Estimate:
    """An unbiased estimate of the diagonal, by parameter name, and its error bar.

    relative_error: root mean squared distance from the exact diagonal over its norm, all entries together; both are
    estimates, the norm's square being that of the estimate less the error's.
    """

    diagonal: Named
    relative_error: float


def estimated_diagonal(
    net: nn.Module,
    batches: Iterable[Any],
    labels: Labels = true_labels,
    *,
    passes: int = 1,
    autocast_dtype: torch.dtype | None = None,
) -> Estimate:
    """The diagonal from one backward pass a batch, whatever the number of label terms.

    E (sum_i s_i g_i)^2 = sum_i g_i^2 for independent random signs s_i: each batch gives its part of the diagonal with
    a relative error of at most sqrt(2). The error bar comes from the differences between passes; of a single pass
    from Var X <= 2/3 E X^2 of each batch's square X, as sums of random signs have a kurtosis of at most 3: too wide
    where few images have most of the gradient, too narrow by what the draw of labels adds, if they are drawn. Each
    pass reads `batches` anew.
    autocast_dtype: bfloat16 rounds gradients by far less than this error (see `kit.training.native_bfloat16`).
    """
    if passes < 1:
        raise InputError(f"passes is {passes}: an estimate needs at least 1")
    total, n_examples = _zeros(net), 0
    squared_norm = 0.0  # of the terms that the estimate adds up: batches, or passes where there are several

    def signed(logits: Tensor, targets: Tensor) -> Tensor:
        return _signed_sum(labels(logits, targets))

    for _ in range(passes):
        found = total if passes == 1 else _zeros(net)

        def take(part: Outer, found: Named = found) -> None:
            nonlocal squared_norm
            signed_sum = sums(part)
            _add_square(found, part, signed_sum)
            if passes == 1 and part.parameter in found:
                squared_norm += _fourth_power(signed_sum)

        n_examples = _each_batch(net, batches, signed, take, lambda n: n, autocast_dtype)
        if passes > 1:
            squared_norm += _squared_norm(found)
            for name, tensor in found.items():
                total[name] += tensor
    size = _squared_norm(total)
    variance = 2 / 3 * squared_norm
    if passes > 1:  # of the sum over the passes: their number times the variance between them
        variance = max(0.0, squared_norm - size / passes) * passes / (passes - 1)
    estimate = {name: tensor.div_(passes * n_examples).contiguous() for name, tensor in total.items()}
    exact = size - variance  # the square of an estimate's norm is too large by its variance
    return Estimate(estimate, math.sqrt(variance / exact) if exact > 0 else math.inf if size else 0.0)


def _fourth_power(tensor: Tensor) -> float:
    """Sum of the fourth powers of a matrix; of a large one from rows evenly spaced, as it only serves an error bar."""
    every = max(1, min(8, len(tensor) // 8)) if tensor.numel() >= _LARGE else 1
    some = tensor[every // 2 :: every]
    return some.square().square_().sum().item() * len(tensor) / len(some)


def _squared_norm(named: Named) -> float:
    return sum(torch.linalg.vector_norm(tensor).item() ** 2 for tensor in named.values())


def _zeros(net: nn.Module) -> Named:
    # a convolution's taps outermost in memory, so that the slot of each is a dense block
    return {
        name: p.new_zeros(p.permute(2, 3, 0, 1).shape).permute(2, 3, 0, 1) if p.ndim == 4 else p.new_zeros(p.shape)
        for name, p in net.named_parameters()
        if p.requires_grad
    }


def _add(total: Named, part: Outer, value: Tensor) -> None:
    """Add value (n_out, n_in) to the entries of its parameter, unless that is frozen."""
    if part.parameter in total:
        slot = part.slot(total[part.parameter])
        slot += value.view(slot.shape)


def _add_square(total: Named, part: Outer, value: Tensor) -> None:
    """Add the squares of value (n_out, n_in), in one pass over memory."""
    if part.parameter in total:
        slot = part.slot(total[part.parameter])
        slot.addcmul_(value.view(slot.shape), value.view(slot.shape))


def _each_batch(
    net: nn.Module,
    batches: Iterable[Any],
    labels: Labels,
    take: Callable[[Outer], None],
    group: Callable[[int], int],
    autocast_dtype: torch.dtype | None = None,
) -> int:
    """Send each batch forward, and back once for every term of `labels`; `take` gets the gradients of each layer.
    group: of a batch's size, how many samples may share a gradient where only a loop helps. Number of examples."""

    def visit(*found: Any) -> None:
        for part in factors(*found):
            take(part)

    layers: dict[str, nn.Module] = {}
    others: list[str] = []
    n_examples = 0
    with evaluating(net):
        for images, targets in inputs(net, batches):
            if not n_examples:
                layers = known_layers(net, images)
                others = [name for name in _zeros(net) if name[: name.rfind(".") + 1] not in layers]
            with torch.autocast(images.device.type, autocast_dtype, enabled=autocast_dtype is not None):
                logits = forward(net, images, layers, visit)
            terms = labels(logits.detach().to(images.dtype), targets)
            for index, term in enumerate(terms):
                if layers:
                    logits.backward(term.to(logits.dtype), retain_graph=index + 1 < len(terms))
                for part in other_factors(net, images, term, others, group(len(images))):
                    take(part)
            n_examples += len(images)
    if not n_examples:
        raise InputError("no batch was given: the data set is empty, or an iterator was read before")
    return n_examples


def inputs(net: nn.Module, batches: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Images, of the net's own precision, and labels of each batch, on its device."""
    dtype = next(net.parameters()).dtype
    for batch in batches:
        images, labels = unpack(batch, device_of(net))
        yield images.to(dtype), labels
