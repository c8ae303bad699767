"""The command lines' words: there at once, and the same as those of the tables behind them."""

import argparse
import shlex
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest

from data_stubs import SOURCES
from data_stubs.policies import POLICIES
from kit import competition
from kit.tools import commands as kit_commands
from kit.tools import parser as kit_parser
from local_eval.__main__ import main
from local_eval.commands import options, parser, score_options
from local_eval.commands.dry_run import ISOLATION
from local_eval.dry_run import stand_in
from local_eval.metric import BINS, FORMS, MetricSpec
from local_eval.models import ARCHITECTURES
from local_eval.recipes import RECIPES
from local_eval.setting import Setting
from local_eval.sweep import CRITERIA

ROOT = Path(__file__).parents[1]
PARSERS = {"kit": kit_parser.build_parser(), "local_eval": parser.build_parser("")}


def commands(name: str) -> dict[str, argparse.ArgumentParser]:
    (found,) = (action for action in PARSERS[name]._actions if isinstance(action, argparse._SubParsersAction))
    return found.choices


@pytest.mark.parametrize("name", PARSERS)
def test_help_needs_neither_torch_nor_numpy(name):
    code = (
        f"import sys\nfrom {name}.__main__ import main\n"
        "for words in ([], *([word] for word in sys.argv[1:])):\n"
        "    try:\n        main([*words, '--help'])\n"
        "    except SystemExit as end:\n        assert end.code == 0\n"
        "assert not {'torch', 'numpy', 'PIL'} & sys.modules.keys(), sorted(sys.modules)\n"
    )
    words = list(commands(name))
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == 1 + len(words)


def test_the_builders_help_does_not_either():
    code = "import sys\nfrom notebooks.build import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n"
    code += "    assert not {'torch', 'numpy', 'nbclient'} & sys.modules.keys(), sorted(sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--form" in done.stdout


@pytest.mark.parametrize("name", PARSERS)
def test_every_command_finds_its_function(name):
    for sub in commands(name).values():
        command = sub.get_default("command")
        if isinstance(command, partial):  # imported when it runs
            module, function = command.args
            command = getattr(import_module(module), function)
        assert callable(command)


@pytest.mark.parametrize("name", PARSERS)
def test_every_option_has_a_help_with_its_default(name):
    for command, sub in commands(name).items():
        for action in sub._actions:
            assert action.help, (command, action)
            if action.option_strings and action.nargs != 0 and not action.required:
                said = action.help.rpartition("(")[2]
                assert action.help.endswith(")"), (command, action)
                if isinstance(action.default, int | float | str):
                    value = str(action.default)
                    number = isinstance(action.default, float) and float(said.rstrip(")")) == action.default
                    assert value in said or number, (command, action)


@pytest.mark.parametrize("name", PARSERS)
def test_every_help_ends_with_an_example_that_is_understood(name):
    for command, sub in commands(name).items():
        line = sub.format_help().rstrip().splitlines()[-1].strip()
        words = shlex.split(line)
        assert words[:4] == ["python", "-m", name, command]
        PARSERS[name].parse_args(words[3:])


def test_words_are_those_of_their_tables():
    assert tuple(kit_commands.DTYPES) == kit_parser.DTYPES
    assert tuple(options.LIKE) == parser.LIKE
    assert parser.SOURCES == SOURCES
    assert tuple(ARCHITECTURES) == parser.ARCHITECTURES
    assert tuple(RECIPES) == parser.RECIPES
    assert {policy.partition(":")[0] for policy in parser.POLICIES} == POLICIES.keys()
    assert tuple(FORMS) == parser.FORMS
    assert tuple(BINS) == parser.BINS
    assert tuple(CRITERIA) == parser.CRITERIA
    assert tuple(ISOLATION) == parser.ISOLATION


def test_defaults_are_those_of_their_tables():
    for name in ("INPUT_DIR", "WORKING_DIR", "N_CHECKPOINTS"):
        assert getattr(kit_parser, name) == getattr(competition, name)
    assert parser.SETTING.items() <= asdict(Setting("synthetic")).items()
    assert tuple(parser.STAND_IN.values()) == ("synthetic", stand_in.N_TRAIN, stand_in.FORGET, stand_in.EPOCHS)
    args = PARSERS["local_eval"].parse_args(["run"])
    assert score_options.spec_of(args) == MetricSpec()
    assert Setting(**options.setting_of(args)) == Setting("synthetic")


def test_a_size_is_for_images_of_a_folder(tmp_path, capsys):
    args = PARSERS["local_eval"].parse_args(["run", "--source", "image-folder:some/where:odd", "--size", "32"])
    assert options.setting_of(args)["source"] == "image-folder@32:some/where:odd"

    for source in ([], ["--source", "digits"]):
        assert main(["train", *source, "--size", "8", "--work-dir", str(tmp_path), "--slots", "1"]) == 2
        assert "--size 8: scales the images of --source image-folder:PATH alone" in capsys.readouterr().err
