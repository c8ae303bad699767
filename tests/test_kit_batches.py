"""Functions written for tuple batches: found out by trying once, given pairs, the same bits as if written for dicts."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from kit.checkpoint import unlearn_once
from kit.competition import Loaders
from kit.errors import InputError
from kit.methods import get_method, method_of
from kit.tools.batches import takes_pairs
from notebooks.build import main as build

HEAD = "import torch\nimport torch.nn.functional as F\n\n\n"
LOOP = """\
def unlearning(net, retain, forget, val):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    net.train()
    {loop}
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()
        optimizer.step()
    net.eval()
"""
DICTS = LOOP.format(loop='for s in retain:\n        inputs, targets = s["image"], s["age_group"]')
TUPLES = {
    "unpacked": LOOP.format(loop="for inputs, targets in retain:"),
    "by number": LOOP.format(loop="for b in retain:\n        inputs, targets = b[0], b[1]"),
    "beside a count": LOOP.format(loop="for i, (inputs, targets) in enumerate(retain):"),
    "moved": LOOP.format(loop="for batch in retain:\n        inputs, targets = (part.to('cpu') for part in batch)"),
    "in a loader of its own": LOOP.format(
        loop="for inputs, targets in torch.utils.data.DataLoader(retain.dataset, retain.batch_size, shuffle=True):"
    ),
}


def method_from(tmp_path, text, name="mine.py"):
    (tmp_path / name).write_text(HEAD + text)
    return get_method(str(tmp_path / name))


def states(method, model, loaders):
    return [unlearn_once(method, model, loaders, seed=3, index=index)[0].state_dict() for index in range(2)]


@pytest.fixture
def plain_loaders(loaders):
    """As a foreign function gets them."""
    return Loaders(*(DataLoader(one.dataset, one.batch_size, shuffle=True) for one in loaders))


@pytest.fixture
def expected(tmp_path, model, plain_loaders):
    return states(method_from(tmp_path, DICTS, "dicts.py"), model, plain_loaders)


@pytest.mark.parametrize("style", TUPLES)
def test_a_function_for_tuples_gives_the_bits_of_one_for_dicts(tmp_path, model, plain_loaders, expected, capsys, style):
    method = method_from(tmp_path, TUPLES[style])
    for found in (
        states(method, model, plain_loaders),
        states(pickle.loads(pickle.dumps(method)), model, plain_loaders),
    ):
        for one, other in zip(found, expected, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2, said  # once a process, and the pickled one stands for another
    assert said[0].startswith("unlearning reads its batches as tuples: it is given pairs")


def test_a_function_for_dicts_is_called_as_it_is(tmp_path, model, plain_loaders, expected, capsys):
    plain = method_of(method_from(tmp_path, DICTS).function.function)
    for one, other in zip(states(plain, model, plain_loaders), expected, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert capsys.readouterr().err == ""


def test_a_fault_in_either_style_is_told_as_it_is(tmp_path, model, plain_loaders):
    broken = DICTS.replace("lr=0.01)", "lr=0.01)\n    {}['nothing']")
    with pytest.raises(InputError, match=r"KeyError: 'nothing' .*mine.py, line 7"):
        states(method_from(tmp_path, broken), model, plain_loaders)


def test_the_adapter_travels_where_it_is_asked_for_alone(tmp_path, model, plain_loaders, expected):
    decorated = "from kit.tools.batches import takes_pairs\n\n\n@takes_pairs\n" + TUPLES["unpacked"]
    for one, other in zip(states(method_from(tmp_path, decorated), model, plain_loaders), expected, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    for text, wanted in ((decorated, True), (TUPLES["unpacked"], False)):
        (tmp_path / "m.py").write_text(HEAD + text)
        assert build(["--method", str(tmp_path / "m.py"), "--out", str(tmp_path / "m.ipynb")]) == 0
        assert ("class PairDataset" in (tmp_path / "m.ipynb").read_text()) is wanted


NAMELESS = {
    "partial": "import functools\n\nunlearning = functools.partial(unlearning)\n",
    "Object": "plain = unlearning\n\n\nclass Object:\n    def __call__(self, net, retain, forget, val):\n"
    "        plain(net, retain, forget, val)\n\n\nunlearning = Object()\n",
}


@pytest.mark.parametrize("name", NAMELESS)
def test_a_method_without_a_name_of_its_own_is_named_by_its_kind(
    name, tmp_path, model, plain_loaders, expected, capsys
):
    method = method_from(tmp_path, TUPLES["unpacked"] + NAMELESS[name])
    for one, other in zip(states(method, model, plain_loaders), expected, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert capsys.readouterr().err.startswith(f"{name} reads its batches as tuples")
    assert build(["--method", str(tmp_path / "mine.py"), "--out", str(tmp_path / "m.ipynb")]) == 0
    assert f"The function `{name}` of mine.py" in (tmp_path / "m.ipynb").read_text()


def test_pairs_keep_the_order_and_the_values(plain_loaders):
    seen = []
    takes_pairs(lambda net, *loaders: seen.extend(list(loaders[0])))(None, *plain_loaders)
    torch.manual_seed(1)
    again = []
    takes_pairs(lambda net, *loaders: again.extend(list(loaders[0])))(None, *plain_loaders)
    torch.manual_seed(1)
    dicts = list(plain_loaders.retain)
    assert all(
        torch.equal(a, b["image"]) and torch.equal(y, b["age_group"]) for (a, y), b in zip(again, dicts, strict=True)
    )
    assert len(seen) == len(dicts)
