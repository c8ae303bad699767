"""A last layer made as sure of held-out examples as another net is: the scale, the noise, what counts."""

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kit.competition import TensorLoader, make_loaders
from kit.errors import InputError
from kit.methods import get_method
from kit.methods.shared.calibration import balanced_as, held_out_logits, log_odds, match_held_out
from kit.methods.shared.surgery import last_layer, redraw
from local_eval.metric.confidence import logit_scaled_confidence
from local_eval.models import smallconv, tinyconv
from tests.conftest import dataset

torch.manual_seed(0)
IMAGES = torch.randn(400, 3, 16, 16)
EVERY = torch.ones(len(IMAGES))


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))


@pytest.fixture(params=[linear, smallconv])  # the second multiplies what its last layer gives
def pair(request):
    """A net and what a surer one says, both near a third whose answers are the labels: net, its batches, logits."""
    torch.manual_seed(1)
    truth = request.param()
    labels = held_out_logits(truth, [(IMAGES, None)]).argmax(1)
    net, other = (copy.deepcopy(truth) for _ in range(2))
    for near, factor in ((net, 3.0), (other, 9.0)):
        head = last_layer(near, IMAGES)
        with torch.no_grad():
            head.weight.add_(0.5 * head.weight.std() * torch.randn(head.weight.shape)).mul_(factor)
    batches = [(IMAGES[i : i + 100], labels[i : i + 100]) for i in range(0, 400, 100)]
    return net, batches, held_out_logits(other, batches)


def sureness(logits):
    return float(log_odds(logits, logits.argmax(1)).mean())


def odds(logits, batches):
    return log_odds(logits, torch.cat([labels for _, labels in batches]))


def test_log_odds_are_the_scores_confidences():
    logits, labels = 5 * torch.randn(400, 10), torch.arange(400) % 10
    expected = logit_scaled_confidence(logits.numpy()[None], labels.numpy())[0]
    np.testing.assert_allclose(log_odds(logits, labels), expected, atol=1e-3)


def test_without_noise_it_is_as_sure_as_the_other_and_right_as_often_as_before(pair):
    net, batches, other = pair
    before = held_out_logits(net, batches)
    scale, sigma = match_held_out(net, batches, other, EVERY, spread=0)
    after = held_out_logits(net, batches)
    assert (sigma, torch.equal(after.argmax(1), before.argmax(1))) == (0, True)
    assert sureness(after) == pytest.approx(sureness(other), rel=0.05)  # by the examples drawn
    assert scale > 1


@pytest.mark.parametrize("pair", [linear], indirect=True)  # whose features are as many as noise has directions
def test_noise_moves_an_example_as_far_as_two_nets_are_apart(pair):
    net, batches, other = pair
    before, moved, apart = held_out_logits(net, batches), [], []
    for seed in range(20):
        torch.manual_seed(seed)
        noisy = copy.deepcopy(net)
        scale, _ = match_held_out(noisy, batches, other, EVERY, spread=0.5)
        still = odds(scale * before, batches)
        moved.append(odds(held_out_logits(noisy, batches), batches) - still)
        apart.append(odds(other, batches) - still)
    moved, apart = (float(torch.stack(values).abs().median()) for values in (moved, apart))
    assert moved == pytest.approx(0.5 * apart / 2**0.5, rel=0.2)


def test_examples_count_as_their_classes_do_in_the_forget_set():
    labels, trained = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([9, 9, 9])
    assert torch.allclose(
        balanced_as(labels, torch.tensor([4, 1, 0]), trained), torch.tensor([2.0, 2.0, 1.0, 0.0, 0.0, 0.0])
    )
    gone = balanced_as(labels, torch.tensor([0, 0, 7]), torch.tensor([9, 9, 0]))  # a class forgotten as a whole
    assert torch.equal(gone, torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]))


class Squared(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, 10)

    def forward(self, images):
        return self.fc(images.flatten(1)) ** 2


def test_a_net_whose_logits_are_no_linear_layers_is_told():
    with pytest.raises(InputError, match="Squared: its logits are not what a linear last layer gives"):
        match_held_out(Squared(), [(IMAGES, torch.arange(400) % 10)], torch.randn(400, 10), EVERY, spread=1.0)


def test_no_held_out_images_are_told():
    retain, forget, _ = make_loaders(dataset(50, 1), dataset(20, 2), dataset(40, 3), loader=TensorLoader)
    with pytest.raises(InputError, match="no held-out images: the validation loader gives none"):
        get_method("calibrated_restart").function(tinyconv(), retain, forget, [], seed=0)


@pytest.mark.parametrize("kept", [0.0, 0.6, 1.0])
def test_a_share_of_the_old_weights_stays_at_their_size(kept):
    net = linear()
    old, bias = (parameter.detach().clone() for parameter in (net[1].weight, net[1].bias))
    redraw(net, kept)
    new = net[1].weight.detach()
    assert torch.equal(net[1].bias, bias)
    assert float(torch.corrcoef(torch.stack([old.flatten(), new.flatten()]))[0, 1]) == pytest.approx(kept, abs=0.03)
    assert float(new.square().mean() / old.square().mean()) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize(("full_steps", "kept"), [(0, 0.0), (4, 0.0), (16, 0.75)])
def test_the_share_of_missing_steps_is_kept(monkeypatch, full_steps, kept):
    from kit.methods import calibrated_restart

    found = []
    monkeypatch.setattr(calibrated_restart, "redraw", lambda net, kept: found.append(kept))
    loaders = make_loaders(dataset(32, 1), dataset(20, 2), dataset(40, 3), batch_size=8, loader=TensorLoader)
    calibrated_restart.unlearn(tinyconv(), *loaders, seed=0, epochs=1.0, full_steps=full_steps)
    assert found == [kept]


def test_a_restarted_net_knows_nothing_of_the_original_but_what_it_is_taught():
    """Two originals that differ in their weights' signs alone give the same net where nobody teaches."""
    loaders = make_loaders(dataset(50, 1), dataset(20, 2), dataset(40, 3), batch_size=8, loader=TensorLoader)
    torch.manual_seed(0)
    one = tinyconv()
    other = copy.deepcopy(one)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(-1 if parameter.dim() > 1 else 1)
    for settings, same in ((["teaching=0", "match=false"], True), (["match=false"], False)):
        method = get_method("calibrated_restart", [*settings, "epochs=0.5", "full_steps=0"])
        first, second = (method(copy.deepcopy(net), loaders, seed=3).state_dict() for net in (one, other))
        pairs = [(first[name], second[name]) for name in first if first[name].dim() > 1]
        assert all(torch.equal(a, b) for a, b in pairs) is same


def test_it_sees_what_a_submission_sees_alone():
    """The net and the three loaders: it opens no file, and no random number of an earlier run moves its bits."""
    loaders = make_loaders(dataset(50, 1), dataset(20, 2), dataset(40, 3), batch_size=8, loader=TensorLoader)
    method = get_method("calibrated_restart", ["epochs=0.5"])
    torch.manual_seed(5)
    net, opened, watching = tinyconv(), [], False
    sys.addaudithook(lambda event, what: opened.append(what[0]) if watching and event == "open" else None)
    first = method(copy.deepcopy(net), loaders, seed=3).state_dict()  # whatever is imported late is now there
    torch.rand(7)
    watching = True
    again = method(copy.deepcopy(net), loaders, seed=3).state_dict()
    watching = False
    assert opened == []
    assert all(torch.equal(first[name], again[name]) for name in first)
    watching = True
    Path(__file__).read_bytes()
    watching = False
    assert opened == [__file__], "the hook hears"


def test_its_loss_is_the_weighted_cross_entropy_and_what_the_teacher_says():
    from kit.methods.calibrated_restart import _learn

    net, teacher = tinyconv().eval(), tinyconv().eval()
    images, labels = IMAGES[:50], torch.arange(50) % 10
    weights = torch.rand(10)
    logits, said = net(images), teacher(images)
    p = said.softmax(1)
    divergence = (p * (p.log() - logits.log_softmax(1))).sum(1).mean()
    expected = F.cross_entropy(logits, labels, weight=weights) + 0.7 * divergence
    found = _learn(net, images, labels, weights=weights, teacher=teacher, teaching=0.7)
    torch.testing.assert_close(found, expected)
