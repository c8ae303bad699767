"""Products with the inverse Fisher of a whole net whose gradients do not fit in memory: F as in `kit.fisher.inverse`.

G G^T and G v come layer by layer from the layers' inputs and output gradients, kept for as many layers at a time as
fit; G^T c is one weighted backward pass. 5,000 gradients of a ResNet-18 written out would be 224 GB.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn

from kit.errors import InputError
from kit.fisher.diagonal import Labels, Named, true_labels
from kit.fisher.inverse import add_lower, inverse_product, mirrored, solve, subtract_and_scale
from kit.fisher.layers import known_layers
from kit.fisher.per_sample import Outer, evaluating, factors, forward, other_factors, sums

_BATCH = 64  # images in one pass of the net
_PAIRED = 256  # rows of G G^T that are worked on at a time


@dataclass(frozen=True)
class Gradients:
    """m gradients of a net in evaluation mode, the j-th the mean over images j * size to (j + 1) * size, as what they
    can be made from. images: (m * size, ...). output_gradients: (m * size, n_classes). layers: by prefix."""

    net: nn.Module
    images: Tensor
    output_gradients: Tensor
    size: int
    layers: dict[str, nn.Module]

    def __len__(self) -> int:
        return len(self.images) // self.size

    def slices(self) -> Iterator[slice]:
        """The images in batches of whole gradients."""
        step = self.size * max(1, _BATCH // self.size)
        for start in range(0, len(self.images), step):
            yield slice(start, min(start + step, len(self.images)))


def streamed_inverse_product(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    vectors: Named,
    damping: float,
    *,
    size: int = 1,
    block: int | None = None,
    rule: Labels = true_labels,
    memory: float = 2e9,
) -> Named:
    """F^-1 v for r vectors at once, F over the parameters named in `vectors`: name -> (r, *the parameter's shape).

    Each gradient of F is the mean over `size` images in turn (1: per-sample gradients); images: (m * size, C, H, W) of
    the net's precision and device, labels: (m * size,). rule: `true_labels` or another of its form, of one term. block:
    diagonal blocks of so many consecutive parameters instead of all of F; their gradients are written out, one block
    at a time, at a cost of m^2 for each parameter. memory: bytes for inputs and output gradients of layers; the peak
    is higher by three m x m matrices in float64 and about as many bytes again.
    """
    if size < 1 or not len(images) or len(images) % size:
        raise InputError(f"{len(images)} images do not make gradients over {size} each: give a multiple")
    with evaluating(net):
        with torch.no_grad():
            logits = torch.cat([net(some) for some in images.split(_BATCH)])
        terms = rule(logits, labels)
        if len(terms) != 1:
            raise InputError(f"the rule of labels gives {len(terms)} terms: one gradient a sample is needed")
        gradients = Gradients(net, images, terms[0], size, known_layers(net, images))
        product = _whole if block is None else _blockwise
        return product(gradients, vectors, damping, block, memory)


def _whole(gradients: Gradients, vectors: Named, damping: float, block: None, memory: float) -> Named:
    m, n_vectors = len(gradients), len(next(iter(vectors.values())))
    lower = gradients.images.new_zeros(m, m, dtype=torch.float64)
    products = lower.new_zeros(m, n_vectors)
    for group in _groups(gradients, [[name] for name in vectors], memory):
        for part in _parts(gradients, [name for names in group for name in names]):
            _add_inner_products(lower, part, memory / 4)
            products += _products(part, part.slot(vectors[part.parameter]))
    coefficients = solve(mirrored(lower), products, damping)
    combined = _combined(gradients, coefficients, vectors)
    return {name: subtract_and_scale(vector, combined[name], damping) for name, vector in vectors.items()}


def _blockwise(gradients: Gradients, vectors: Named, damping: float, block: int, memory: float) -> Named:
    flat = torch.cat([vector.reshape(len(vector), -1) for vector in vectors.values()], dim=1)
    found, start = torch.empty_like(flat), 0
    for group in _groups(gradients, _blocks(vectors, block), memory):
        parts: dict[str, list[Outer]] = {}
        for part in _parts(gradients, list(dict.fromkeys(name for pieces in group for name in pieces))):
            parts.setdefault(part.parameter, []).append(part)
        for pieces in group:
            rows = [_columns(parts[name], vectors[name].shape[1:], *ends) for name, ends in pieces.items()]
            columns = slice(start, start + block)
            found[:, columns] = inverse_product(torch.cat(rows, dim=1), flat[:, columns], damping)
            start += block
    sizes = [prod(vector.shape[1:]) for vector in vectors.values()]
    pairs = zip(vectors.items(), found.split(sizes, dim=1), strict=True)
    return {name: part.reshape(vector.shape) for (name, vector), part in pairs}


def _blocks(vectors: Named, block: int) -> list[dict[str, tuple[int, int]]]:
    """Which entries, first and end, of which tensors each block holds, by name."""
    starts = list(accumulate((prod(vector.shape[1:]) for vector in vectors.values()), initial=0))
    spans = dict(zip(vectors, pairwise(starts), strict=True))
    return [
        {
            name: (max(first - start, 0), min(first + block, end) - start)
            for name, (start, end) in spans.items()
            if first < end and start < first + block
        }
        for first in range(0, starts[-1], block)
    ]


def _groups(gradients: Gradients, items: list[Collection[str]], memory: float) -> Iterator[list[Collection[str]]]:
    """Items, parameter names each, in turn, as many together as `memory` holds what is kept of their layers."""
    first = replace(gradients, images=gradients.images[:1], output_gradients=gradients.output_gradients[:1], size=1)
    cost = {
        prefix: sum(tensor.numel() * tensor.element_size() for tensor in pair) * len(gradients.images)
        for prefix, pair in _captured(first, gradients.layers).items()
    }
    group: list[Collection[str]] = []
    for item in items:
        prefixes = {_prefix(name) for names in (*group, item) for name in names}
        if group and sum(cost.get(prefix, 0) for prefix in prefixes) > memory:
            yield group
            group = []
        group.append(item)
    yield group


def _prefix(name: str) -> str:
    return name[: name.rfind(".") + 1]


def _parts(gradients: Gradients, names: list[str]) -> Iterator[Outer]:
    """The gradients of these parameters as factors, m rows each."""
    layers = {_prefix(name): gradients.layers.get(_prefix(name)) for name in names}
    layers = {prefix: module for prefix, module in layers.items() if module is not None}
    kept = _captured(gradients, layers)
    for prefix in list(kept):
        for part in factors(prefix, layers[prefix], *kept.pop(prefix)):
            if part.parameter in names:
                yield part.batch_means(gradients.size)
    others = [name for name in names if _prefix(name) not in layers]
    means = gradients.output_gradients / gradients.size
    yield from other_factors(gradients.net, gradients.images, means, others, gradients.size)


def _captured(gradients: Gradients, layers: dict[str, nn.Module]) -> dict[str, tuple[Tensor, Tensor]]:
    """What `factors` takes for each of the layers, for all images."""
    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def visit(prefix: str, module: nn.Module, *found: Tensor) -> None:
        if prefix not in kept:
            kept[prefix] = tuple(_room(tensor, len(gradients.images)) for tensor in found)
        for room, tensor in zip(kept[prefix], found, strict=True):
            room[where] = tensor

    for where in gradients.slices() if layers else ():
        forward(gradients.net, gradients.images[where], layers, visit).backward(gradients.output_gradients[where])
    return kept


def _room(like: Tensor, n: int) -> Tensor:
    layout = torch.channels_last if like.ndim == 4 else torch.contiguous_format
    return torch.empty((n, *like.shape[1:]), dtype=like.dtype, device=like.device, memory_format=layout)


def _add_inner_products(lower: Tensor, part: Outer, memory: float) -> None:
    """Add <g_i, g_j> for j <= i: from the factors where that is less work, else from gradients written out, for as
    many rows of the weight at a time as fit in `memory` bytes."""
    n_positions, n_out, n_in = part.n_positions, part.n_out, part.n_in
    if n_positions**2 * (n_out + n_in) > n_out * n_in:
        step = max(1, int(memory / (len(part) * n_in * part.left.element_size())))
        for start in range(0, n_out, step):
            add_lower(lower, _written(part.channels(start, start + step)))
        return
    left, right = part.left, part.inputs()
    for start in range(0, len(part), _PAIRED):
        stop = min(start + _PAIRED, len(part))
        total = left.new_zeros(stop - start, stop)
        for a in range(n_positions):
            for b in range(n_positions):
                total.addcmul_(left[start:stop, a] @ left[:stop, b].T, right[start:stop, a] @ right[:stop, b].T)
        lower[start:stop, :stop] += total


def _written(part: Outer) -> Tensor:
    """The gradients themselves, (m, n_out * n_in)."""
    rows = part.left.new_empty(len(part), part.n_out, part.n_in)
    size = max(1, 2**20 // (part.n_positions * part.n_in))
    for start, (left, right) in zip(range(0, len(part), size), part.chunks(size), strict=True):
        torch.bmm(left, right, out=rows[start : start + size])
    return rows.flatten(1)


def _columns(parts: list[Outer], shape: tuple[int, ...], start: int, stop: int) -> Tensor:
    """Entries start to stop of the gradients of one parameter of this shape, (m, stop - start)."""
    each = prod(shape) // parts[0].n_out  # entries in one row of the parameter
    first, last = start // each, ceil(stop / each)
    rest = shape[1:] if shape and shape[0] == parts[0].n_out else ()
    rows = parts[0].left.new_zeros(len(parts[0]), last - first, *rest)
    for part in parts:
        slot = part.slot(rows)
        slot += _written(part.channels(first, last)).view(slot.shape)
    return rows.flatten(1)[:, start - first * each : stop - first * each]


def _products(part: Outer, vectors: Tensor) -> Tensor:
    """<g_i, v> for vectors (r, ...) of the part's n_out * n_in entries, (m, r) float64."""
    vectors = vectors.reshape(len(vectors), part.n_out, part.n_in).to(part.left)
    found = []
    for left, right in part.chunks(2**20 // (part.n_positions * (part.n_in + len(vectors) * part.n_out))):
        applied = right @ vectors.flatten(0, 1).T
        found.append(torch.einsum("nol,nlro->nr", left, applied.unflatten(2, vectors.shape[:2])))
    return torch.cat(found).double()


def _combined(gradients: Gradients, coefficients: Tensor, vectors: Named) -> Named:
    """G^T c for the columns of coefficients (m, r): name -> (r, *shape), a weighted backward pass for each."""
    each = (coefficients / gradients.size).repeat_interleave(gradients.size, dim=0).to(gradients.output_gradients)
    total = {name: vector.new_zeros(vector.shape) for name, vector in vectors.items()}
    others = [name for name in vectors if _prefix(name) not in gradients.layers]
    index = 0

    def take(part: Outer) -> None:
        if part.parameter in total:
            slot = part.slot(total[part.parameter][index])
            slot += sums(part).view(slot.shape)

    def visit(*found: Any) -> None:
        for part in factors(*found):
            take(part)

    for where in gradients.slices():
        images = gradients.images[where]
        logits = forward(gradients.net, images, gradients.layers, visit)
        for index in range(each.shape[1]):
            term = gradients.output_gradients[where] * each[where, index : index + 1]
            if gradients.layers:
                logits.backward(term, retain_graph=index + 1 < each.shape[1])
            for part in other_factors(gradients.net, images, term, others, len(images)):
                take(part)
    return total
