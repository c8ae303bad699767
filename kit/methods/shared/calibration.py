"""How sure a net is of what it has not seen, and its last layer changed so that this is as with another net."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kit.errors import InputError
from kit.methods.shared.surgery import last_layer

_N_EXAMPLES, _N_DRAWS = 2048, 8


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """log(p / (1 - p)) of each label's probability, (n,), of logits (n, n_classes): the score's confidence."""
    own = labels[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).logsumexp(1)


@torch.no_grad()
def held_out_logits(net: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Logits in evaluation mode, float32 (n, n_classes) on the CPU. Raises InputError without a batch."""
    if not batches:
        raise InputError("no held-out images: the validation loader gives none, which this method needs")
    net.eval()
    return torch.cat([net(images).float().cpu() for images, _ in batches])


def balanced_as(labels: Tensor, counts: Tensor, trained: Tensor) -> Tensor:
    """Weight of each example, (n,), such that classes weigh as in `counts`; only those that the net was trained on.

    counts, trained: examples of each class, (n_classes,). Where no example is of such a class, all trained ones count.
    """
    held = torch.bincount(labels, minlength=len(counts)).clamp(min=1)
    weights = (counts * (trained > 0) / held)[labels]
    return weights if weights.any() else (trained > 0)[labels].float()


@torch.no_grad()
def match_held_out(
    net: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], logits: Tensor, weights: Tensor, spread: float
) -> tuple[float, float]:
    """Scale the last layer, then add normal noise to it, until `net` is as sure of held-out examples as another net.

    logits (n, n_classes): the other net's, of the same examples. weights (n,): how much each counts. The scale makes
    the mean log-odds of each net's own answers equal. The noise moves an example's log-odds by `spread` times what two
    nets that are trained apart differ by: sqrt(1/2) of the difference between these two. All of it is drawn on the CPU.
    Gives the scale and the noise's standard deviation, in units of the weights' root mean square. Raises InputError
    where the logits are not what a linear last layer gives.
    """
    head = last_layer(net, batches[0][0])
    features, factor = _features(net, head, batches)
    chosen = torch.multinomial(weights, _N_EXAMPLES, replacement=True)
    labels = torch.cat([labels for _, labels in batches]).cpu()[chosen]
    like = copy.deepcopy(head).cpu().float()
    rms = like.weight.square().mean().sqrt()
    noisy = [_drawn(head, rms) for _ in range(_N_DRAWS)]
    ours, *moves = (factor * layer(features[chosen]) for layer in (like, *noisy))

    def mixed(scale: float, sigma: float) -> Tensor:
        return torch.cat([scale * ours + sigma * move for move in moves])

    sure = _sureness(logits[chosen])
    scale, sigma = _where(lambda scale: _sureness(scale * ours) < sure, 0.1, 10.0), 0.0
    if spread:
        still = log_odds(scale * ours, labels)
        wanted = spread * (log_odds(logits[chosen], labels) - still).abs().median() / 2**0.5
        sigma = 0.1
        for _ in range(4):  # what the noise moves grows all but in proportion to it
            moved = log_odds(mixed(scale, sigma), labels.repeat(_N_DRAWS)) - still.repeat(_N_DRAWS)
            sigma *= float(wanted / moved.abs().median().clamp(min=1e-12))
        # Noise makes a net surer of its answers, right or wrong: taken back.
        scale = _where(lambda scale: _sureness(mixed(scale, sigma)) < sure, scale / 2, scale * 2)
    noise = _drawn(head, rms)
    for parameter, drawn in zip(head.parameters(), noise.parameters(), strict=True):
        if parameter.requires_grad:
            parameter.mul_(scale).add_(sigma * drawn.to(parameter))
    return scale, sigma


def _features(net: nn.Module, head: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, float]:
    """What the last layer is given, (n, n_features), and the constant that the net multiplies its outputs by."""
    given: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].float().cpu()))
    try:
        logits = held_out_logits(net, batches)
    finally:
        handle.remove()
    features = torch.cat(given)
    if isinstance(head, nn.Linear) and features.dim() == 2 and len(features) == len(logits):
        found = copy.deepcopy(head).cpu().float()(features)
        found, logits = (values - values.mean(dim=1, keepdim=True) for values in (found, logits))
        factor = float((found * logits).sum() / found.square().sum())
        if torch.allclose(factor * found, logits, rtol=1e-2, atol=1e-2 * float(logits.abs().max())):
            return features, factor
    raise InputError(
        f"{type(net).__name__}: its logits are not what a linear last layer gives, which this method changes: choose "
        "another method"
    )


def _drawn(head: nn.Module, std: Tensor) -> nn.Module:
    """A layer like `head` with weights and bias from N(0, std^2), on the CPU."""
    noise = copy.deepcopy(head).cpu().float()
    for parameter in noise.parameters():
        parameter.copy_(std * torch.randn(parameter.shape))
    return noise


def _sureness(logits: Tensor) -> float:
    """Mean log-odds of a net's own answers: it grows with the scale of its logits, whatever the labels."""
    return float(log_odds(logits, logits.argmax(1)).mean())


def _where(is_below: Callable[[float], bool], low: float, high: float) -> float:
    """The number between, by halving in the logarithm, up to which `is_below` holds."""
    for _ in range(20):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return low
