"""Several machines on one folder: parts that are disjoint and complete, told when others are still missing."""

import json

import pytest

from kit.errors import InputError
from kit.methods import get_method
from local_eval import retrained, unlearned
from local_eval.__main__ import main
from local_eval.retrained import ORIGINAL
from local_eval.setting import Setting, open_workspace
from local_eval.shard import WHOLE, Shard, parse_shard

SETTING = Setting("digits", "random:30", n_train=300, architecture="tinyconv", epochs=1, n_retain_sample=100)


@pytest.fixture
def workspace(tmp_path):
    return open_workspace(SETTING, tmp_path / "runs")


def test_parts_are_disjoint_and_complete():
    parts = [Shard(k, 3).of(range(11)) for k in (1, 2, 3)]
    assert sorted(index for part in parts for index in part) == list(range(11))
    assert parse_shard(None) == WHOLE and WHOLE.of(range(4)) == [0, 1, 2, 3]
    assert Shard(2, 3).of([1, 2, 4]) == [1, 4]  # what is there already does not move the others


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2"])
def test_a_part_that_there_is_not_is_one_line(text):
    with pytest.raises(InputError, match="--shard"):
        parse_shard(text)


def test_each_part_trains_its_own_and_the_first_the_original(workspace, monkeypatch):
    asked = []
    monkeypatch.setattr(retrained, "run_all", lambda setup, todo, *_, **__: asked.append(todo))
    for k in (1, 2):
        retrained.fill_retrained(workspace, 5, shard=Shard(k, 2), devices=["cpu"], progress=False)
    assert asked == [[ORIGINAL, 0, 2, 4], [1, 3]]


def test_unlearned_parts_are_whole_methods_of_their_numbers(workspace, monkeypatch):
    asked = []
    monkeypatch.setattr(unlearned, "make", lambda schedule, *_: asked.append(schedule))
    monkeypatch.setattr(unlearned, "Scheduler", lambda run, todo: todo)
    for k in (1, 2, 3):
        unlearned.fill_unlearned(
            workspace, get_method("finetune"), 7, shard=Shard(k, 3), devices=["cpu"], progress=False
        )
    assert asked == [[0, 3, 6], [1, 4], [2, 5]]
    with pytest.raises(InputError, match="time limit"):
        unlearned.fill_unlearned(workspace, get_method("finetune"), 7, limit="1h", shard=Shard(1, 2))


def test_two_parts_make_the_pool_of_one_machine(workspace, tmp_path, capsys):
    where = ["--setting", str(workspace.folder), "--device", "cpu", "--slots", "1", "--quiet", "--json"]
    told = []
    for part in ("2/2", "1/2"):
        assert main(["retrain", *where, "--n-models", "3", "--shard", part]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert [facts["n_missing"] for facts in told] == [2, 0]
    other = open_workspace(SETTING, tmp_path / "other")
    whole = retrained.fill_retrained(other, 3, devices=["cpu"], progress=False)
    for index in range(3):
        ours, theirs = (pool.read(3)["forget"][index] for pool in (retrained.retrained_pool(workspace), whole))
        assert (ours == theirs).all()


def test_a_part_does_not_begin_anew_what_others_made(workspace, capsys):
    words = ["unlearn", "--setting", str(workspace.folder), "--method", "finetune", "--shard", "1/2", "--fresh"]
    assert main(words) == 2
    assert "--fresh: would remove what other parts than 1/2 made" in capsys.readouterr().err
