"""The training loop: what it makes of batches it is given."""

import pytest
import torch
from torch import nn

from kit.competition import TensorLoader
from kit.errors import InputError
from kit.training import cycle, fine_tune
from tests.conftest import dataset


def sizes(n_examples, batch_size, n_batches):
    batches = cycle(TensorLoader(dataset(n_examples, 0), batch_size=batch_size))
    return [len(next(batches)["age_group"]) for _ in range(n_batches)]


def test_a_last_batch_of_one_is_passed_over():
    assert sizes(9, 4, 5) == [4, 4, 4, 4, 4]
    assert sizes(10, 4, 5) == [4, 4, 2, 4, 4]


def test_batches_of_one_are_used_where_there_are_no_others():
    assert sizes(3, 1, 4) == [1, 1, 1, 1]
    assert sizes(1, 64, 2) == [1, 1]


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
