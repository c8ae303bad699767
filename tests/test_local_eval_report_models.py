"""Activation maps and the models behind them; the time of checkpoints from pool and ledger."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kit.emit import emit
from kit.errors import InputError
from kit.methods import get_method
from local_eval.archived import fill_from_archive
from local_eval.models import smallconv
from local_eval.pool import logits_of
from local_eval.report import saliency
from local_eval.report.saliency import class_activation, nets_of
from local_eval.report.timing import Timing, timing_of
from local_eval.retrained import fill_retrained
from local_eval.setting import Setting, open_workspace
from local_eval.unlearned import fill_unlearned

SETTING = Setting(source="digits", n_train=300, forget="random:30", architecture="tinyconv", epochs=1)
OPTIONS = {"devices": ["cpu"], "progress": False}


class LeftSighted(nn.Module):
    """Sees nothing of the right half."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1), nn.Linear(5, 3)

    def features(self, x):
        x = F.relu(self.first(x))
        return torch.cat([x[..., :4], torch.zeros_like(x[..., 4:])], -1)

    def head(self, features):
        return self.fc(F.relu(self.second(features)).mean((2, 3)))

    def forward(self, x):
        return self.head(self.features(x))


@pytest.fixture
def seen():
    torch.manual_seed(0)
    return LeftSighted(), torch.rand(6, 3, 8, 8) * 255, torch.tensor([0, 1, 2, 0, 1, 2])


def test_maps_are_positive_gradient_times_activation_image_by_image(seen):
    net, images, labels = seen
    found = class_activation(net, images, labels)
    for i in range(len(images)):
        features = net.features(images[i : i + 1]).detach().requires_grad_()
        logits = net.head(features)
        logits[0, labels[i]].backward()
        expected = sum(
            torch.clamp(features.grad[0, channel], min=0) * features[0, channel].detach() for channel in range(4)
        ).clamp(min=0)
        expected = expected / expected.max() if expected.max() > 0 else expected
        np.testing.assert_allclose(found.maps[i], expected.numpy(), atol=1e-5)
        assert found.probability[i] == pytest.approx(logits.softmax(1)[0, labels[i]].item(), rel=1e-4)
    assert found.maps.max() == 1 and (found.maps[..., 4:] == 0).all(), "what it cannot see does not speak"


def test_the_layer_still_has_places():
    net = smallconv()
    assert saliency._layer(net, torch.zeros(1, 3, 32, 32)) is net.stages[1][0], "8 x 8; the next has 4 x 4"
    with pytest.raises(InputError, match="convolutions"):
        class_activation(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.zeros(1, 3, 2, 2), torch.tensor([0]))


def test_it_leaves_the_net_as_it_was(seen):
    net, images, labels = seen
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    class_activation(net, images, labels)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    workspace = open_workspace(SETTING, tmp_path_factory.mktemp("runs"))
    fill_retrained(workspace, 1, **OPTIONS)
    return workspace


def test_the_first_models_of_pools_are_kept(workspace):
    pool = fill_unlearned(workspace, get_method("random_perturbation", ["beta=0.3"]), 2, seed=3, **OPTIONS)
    found = nets_of(workspace, pool)
    assert list(found.nets) == ["original", "unlearned", "retrained"] and not found.missing
    for name, kept in (("unlearned", pool), ("retrained", fill_retrained(workspace, 1, **OPTIONS))):
        again = logits_of(found.nets[name], workspace.evaluated())
        assert np.array_equal(again["forget"], kept.read(1)["forget"][0]), name
    assert len(list(pool.folder.glob("*.pth"))) == 1


def test_what_was_not_kept_or_is_broken_is_left_out_with_a_sentence(workspace):
    pool = fill_unlearned(workspace, get_method("do_nothing"), 1, **OPTIONS)
    (weights,) = pool.folder.glob("*.pth")
    weights.write_bytes(weights.read_bytes()[:1000])
    found = nets_of(workspace, pool)
    assert list(found.nets) == ["original", "retrained"]
    assert found.missing == (f"The unlearned model is left out: {weights} is damaged or of another net.",)
    weights.unlink()
    original = workspace.original_path.read_bytes()
    workspace.original_path.write_bytes(original[:1000])
    try:
        first, second = nets_of(workspace, pool).missing
    finally:
        workspace.original_path.write_bytes(original)
    assert first.endswith("original_model.pth is damaged or gone.") and "has logits alone" in second


def test_an_archive_gives_its_weights_and_its_ledger_the_time(workspace, tmp_path):
    method = get_method("finetune")
    result = emit(
        method,
        workspace.original(),
        workspace.loaders(method.loader),
        out=tmp_path,
        n_checkpoints=2,
        progress=False,
    )
    pool = fill_from_archive(workspace, result.archive, **OPTIONS)
    again = logits_of(nets_of(workspace, pool).nets["unlearned"], workspace.evaluated())
    assert np.array_equal(again["test"], pool.read(1)["test"][0])
    timing = timing_of(pool, pool.read(2)["seconds"], result.archive)
    np.testing.assert_allclose(timing.seconds, result.checkpoint_s, atol=1e-5)
    assert timing.whole_s is not None and "by its ledger" in timing.sentence()


def test_a_pool_knows_its_limit(workspace):
    pool = fill_unlearned(workspace, get_method("finetune", ["lr=0.01"]), 1, limit="60s", **OPTIONS)
    timing = timing_of(pool, pool.read(1)["seconds"])
    assert timing.limit_s == 60 and timing.steps == 5
    assert "the run's limit was 60.0 s" in timing.sentence() and "5 steps were granted to each" in timing.sentence()


def test_one_step_and_one_lowering_are_told_as_one():
    one = Timing(np.ones(2), steps=1, lowered=1).sentence()
    assert "; 1 step was granted to each, and the plan was lowered once." in one
    assert (
        "; 3 steps were granted to each, and the plan was lowered 2 times."
        in Timing(np.ones(2), steps=3, lowered=2).sentence()
    )
