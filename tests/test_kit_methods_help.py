"""`kit methods NAME` says what a method is, where it comes from, and what each of its hyper-parameters means."""

import json
import sys

import pytest

from kit.__main__ import main
from kit.methods import get_method, method_names, method_of
from kit.tools.commands import meanings

RECOVERY = {"lr", "momentum", "weight_decay", "bfloat16"}  # of kit.training.fine_tune, where a method passes them on


@pytest.mark.parametrize("name", method_names())
def test_every_hyper_parameter_has_a_meaning_in_words(name):
    method = get_method(name)
    found = meanings(method)
    assert found.keys() == method.defaults.keys()
    assert all(len(words.split()) >= 2 for words in found.values()), found
    document = sys.modules[method.function.__module__].__doc__
    own = set(method.defaults) - RECOVERY
    assert all(f"\n  {one}: " in document for one in own)
    assert document.count("\n  ") >= len(own)
    told = [line.partition(":")[0] for line in document.partition("Hyper-parameters:\n")[2].splitlines()]
    assert {line.strip() for line in told if line.startswith("  ") and line[2] != " "} <= method.defaults.keys()


def test_the_command_shows_source_equation_and_meanings(capsys):
    assert main(["methods", "scrub"]) == 0
    out = capsys.readouterr().out
    assert 'Source: Kurmanji, Triantafillou, Hayes and\nTriantafillou 2023, "Towards Unbounded' in out
    assert "gamma CE + alpha KL(p* || p_w)" in out
    assert "    gamma = 1.0            weight of CE in the minimising epochs\n" in out
    assert "    momentum = 0.9         of SGD\n" in out
    assert main(["methods", "scrub", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scrub"]["meanings"]["gamma"] == "weight of CE in the minimising epochs"
    assert main(["methods"]) == 0
    assert all("Hyper-parameters" not in line for line in capsys.readouterr().out.splitlines())


def test_a_mixture_and_an_own_function(participant, capsys):
    mixture = get_method("mixture(transpose=1, scrub=1)")
    assert meanings(mixture)["scrub.gamma"] == "weight of CE in the minimising epochs"
    assert meanings(mixture)["transpose.epochs"] == "passes over the retain set"
    own = '"""Shift.\n\nHyper-parameters:\n  by: how far,\n    in logits\n"""\n'
    own += "def unlearning(net, a, b, c, by=1.0, to=2): pass\n"
    assert main(["methods", participant(own)]) == 0
    out = capsys.readouterr().out
    assert out == "Shift.\n\n    by = 1.0  how far, in logits\n    to = 2\n"
    assert meanings(method_of(lambda net, a, b, c, by=1: net)) == {"by": ""}
    assert main(["methods", silent := participant("def unlearning(net, a, b, c): pass\n")]) == 0
    assert capsys.readouterr().out == f"{silent}: its file says nothing of it\n\n"
