"""The training loop: what it makes of batches it is given, its schedules and losses."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kit.competition import TensorLoader
from kit.errors import InputError
from kit.methods.shared.data import class_counts, interleaved, rebatched
from kit.methods.shared.schedules import constant, cosine_per_epoch, cosine_to, part
from kit.methods.shared.teaching import contrast, kl_divergence
from kit.training import cycle, fine_tune, fused, train
from tests.conftest import dataset


class Seen(nn.Module):
    """Notes the sizes of the batches it is trained on."""

    def __init__(self, normalised):
        super().__init__()
        self.sizes = []
        self.norm = nn.BatchNorm2d(3) if normalised else nn.GroupNorm(1, 3)
        self.fc = nn.LazyLinear(10)

    def forward(self, images):
        self.sizes.append(len(images))
        return self.fc(self.norm(images / 255).flatten(1))


def sizes(n_examples, batch_size, n_batches, normalised=True):
    net, loader = Seen(normalised), TensorLoader(dataset(n_examples, 0), batch_size=batch_size)
    net.fc(torch.zeros(1, dataset(1, 0).images[0].numel()))
    fine_tune(net, loader, n_batches)
    return net.sizes


def test_a_last_batch_of_one_is_passed_over_in_training_with_batchnorm_alone():
    assert sizes(9, 4, 5) == [4, 4, 4, 4, 4]
    assert sizes(10, 4, 5) == [4, 4, 2, 4, 4]
    assert sizes(9, 4, 5, normalised=False) == [4, 4, 1, 4, 4]


def test_batches_of_one_are_used_where_there_are_no_others():
    assert sizes(3, 1, 4) == [1, 1, 1, 1]
    assert sizes(1, 64, 2) == [1, 1]


@pytest.mark.parametrize("seed", range(8))
def test_a_batch_of_one_is_passed_over_whenever_it_comes(seed):
    torch.manual_seed(seed)
    loaders = TensorLoader(dataset(8, 0), batch_size=4), TensorLoader(dataset(1, 1), batch_size=4)
    batches = cycle(interleaved(*loaders), Seen(True))
    assert [len(next(batches)["age_group"]) for _ in range(5)] == [4] * 5
    ones = [(torch.zeros(1, 3, 4, 4), torch.zeros(1))] * 3
    batches = cycle(ones, Seen(True))
    assert [len(next(batches)[1]) for _ in range(7)] == [1] * 7


def test_cycling_leaves_nothing_out():
    batches = cycle(TensorLoader(dataset(9, 0), batch_size=4))
    assert [len(next(batches)["age_group"]) for _ in range(5)] == [4, 4, 1, 4, 4]


def test_an_empty_loader_is_told():
    with pytest.raises(InputError, match="gave no batch"):
        next(cycle([]))


def test_a_net_whose_last_map_is_one_pixel_trains_on_any_number_of_examples():
    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 16), nn.BatchNorm2d(4), nn.Linear(4, 10)

        def forward(self, images):
            return self.fc(self.norm(self.conv(images / 255)).flatten(1))

    torch.manual_seed(0)
    net = Narrow()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(torch.zeros(1, 3, 16, 16))
    fine_tune(net, TensorLoader(dataset(9, 0), batch_size=4, shuffle=True), 6, lr=0.01)
    assert all(torch.isfinite(p).all() for p in net.parameters())
    for loader in (TensorLoader(dataset(9, 0), batch_size=1), TensorLoader(dataset(1, 0), batch_size=4)):
        with pytest.raises(InputError, match=r"a batch of one image, and BatchNorm .*: give the loader a larger batch"):
            fine_tune(net, loader, 2)


def rates_of(schedule, n_steps, lr=0.1):
    """The learning rates that a net is trained at, and the optimiser's own afterwards."""
    net, rates = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10)), []
    optimizer = fused(torch.optim.SGD, net.parameters(), lr)
    note = lambda _: rates.append(optimizer.param_groups[0]["lr"])  # noqa: E731
    train(net, TensorLoader(dataset(8, 0), batch_size=4), n_steps, optimizer, schedule=schedule, before_step=note)
    return rates, optimizer.param_groups[0]["lr"]


def torchs_cosine(n, per, t_max, eta_min=0.0):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, t_max, eta_min)
    rates = []
    for step in range(n):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % per == 0:
            scheduler.step()
    return rates


@pytest.mark.parametrize("n_epochs", [1, 3, 4, 7])
@pytest.mark.parametrize("n_batches", [1, 5, 11])
def test_schedules_are_torchs_own(n_epochs, n_batches):
    n = n_epochs * n_batches
    assert rates_of(cosine_per_epoch(n_epochs), n)[0] == pytest.approx(torchs_cosine(n, n_batches, n_epochs))
    assert rates_of(cosine_to(0.02), n)[0] == pytest.approx(torchs_cosine(n, 1, n, eta_min=0.002))


def test_parts_of_a_schedule_make_up_the_whole():
    whole, _ = rates_of(cosine_to(0.1), 12)
    parts = [rates_of(part(cosine_to(0.1), index / 4, (index + 1) / 4), 3)[0] for index in range(4)]
    assert [rate for rates in parts for rate in rates] == pytest.approx(whole)


def test_the_optimiser_keeps_its_own_rate():
    assert rates_of(cosine_to(0.0), 5, lr=0.3)[1] == 0.3


def test_gradients_can_be_changed_before_a_step():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
    before = net[1].weight.detach().clone(), net[1].bias.detach().clone()
    keep = lambda model: model[1].weight.grad.zero_()  # noqa: E731
    fine_tune(net, TensorLoader(dataset(8, 0), 4), 3, schedule=constant, weight_decay=0.0, before_step=keep)
    assert torch.equal(net[1].weight, before[0])
    assert not torch.equal(net[1].bias, before[1])


def test_divergence_and_contrast_are_their_formulas():
    torch.manual_seed(0)
    a, b = 3 * torch.randn(6, 10, requires_grad=True), 3 * torch.randn(4, 10, requires_grad=True)
    p, q = (a / 5).softmax(1), (a.flip(0) / 5).softmax(1)
    expected = (p * (p.log() - q.log())).sum() / 6
    torch.testing.assert_close(kl_divergence(a, a.flip(0), 5.0), expected)
    pairs = [[(x @ y / 1.15).item() for y in b] for x in a]
    each = [torch.tensor(row).logsumexp(0) - torch.tensor(row) for row in pairs]
    torch.testing.assert_close(contrast(a, b, 1.15), torch.stack(each).mean(), rtol=1e-5, atol=1e-5)
    leaves = [torch.randn(3, 10, requires_grad=True) for _ in range(2)]
    contrast(*leaves, 1.0).backward()
    assert leaves[0].grad is not None and leaves[1].grad is None
    kl_divergence(leaves[1], leaves[0]).backward()
    assert leaves[1].grad is None


def test_contrast_is_least_where_all_are_alike():
    alike = contrast(torch.ones(3, 10), torch.ones(4, 10), 1.0)
    assert alike == pytest.approx(torch.tensor(4.0).log().item())
    torch.manual_seed(0)
    assert contrast(torch.randn(3, 10), torch.randn(4, 10), 1.0) > alike


def test_contrast_is_taken_in_full_precision():
    torch.manual_seed(0)
    a, b = 10 * torch.randn(6, 10), 10 * torch.randn(4, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = contrast(a, b, 1.0)
    assert found == contrast(a, b, 1.0)
    assert (a @ b.T).bfloat16().float().log_softmax(1).mean().neg() != found


def as_tuples(data):
    return DataLoader(TensorDataset(data.images.float(), data.labels), 4, shuffle=True)


@pytest.mark.parametrize("make", [as_tuples, lambda data: TensorLoader(data, 4), lambda data: DataLoader(data, 4)])
def test_loaders_of_another_batch_size_and_counts_of_classes(make):
    data = dataset(23, 0)
    loader = rebatched(make(data), 10)
    torch.manual_seed(0)
    sizes = [len(batch["image"] if isinstance(batch, dict) else batch[0]) for batch in loader]
    assert sizes == [10, 10, 3]
    before = torch.get_rng_state()
    assert torch.equal(class_counts(make(data)), torch.bincount(data.labels))
    assert torch.equal(torch.get_rng_state(), before), "counting must not draw"


def test_interleaved_batches_are_each_sources_once_an_epoch_in_random_order():
    torch.manual_seed(0)
    batches = cycle(interleaved(["a1", "a2", "a3"], ["b1", "b2"]))
    epochs = [[next(batches) for _ in range(5)] for _ in range(6)]
    assert all(sorted(epoch) == ["a1", "a2", "a3", "b1", "b2"] for epoch in epochs)
    assert all([one for one in epoch if one[0] == "a"] == ["a1", "a2", "a3"] for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1
