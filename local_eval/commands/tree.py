"""The command tree: a setting's data and its original model as the competition's input tree."""

import argparse
import shlex

from data_stubs.kaggle_tree import write_tree
from kit.tools.cli import answer
from kit.tools.own import is_file_spec
from local_eval import models
from local_eval.commands import options as shared
from local_eval.retrained import fill_retrained


def tree(args: argparse.Namespace) -> int:
    workspace = shared.workspace_of(args)
    fill_retrained(workspace, 0, devices=shared.devices_for(args, workspace, 1), progress=not args.quiet)
    root = write_tree(workspace.splits, workspace.original().state_dict(), args.out)
    architecture = workspace.setting.architecture
    if architecture != "resnet18" and not is_file_spec(architecture):  # python -m kit builds no other by name
        architecture = f"{models.__file__}:{architecture}"
    options = shlex.join(["--input", str(root), "--architecture", architecture])
    lines = [f"input tree: {root}", f"work on it: python -m kit emit {options}"]
    lines.append(f"score what it writes: python -m local_eval score submission.zip --setting {workspace.folder}")
    facts = {"tree": str(root), "architecture": architecture, "setting": str(workspace.folder)}
    answer(args, facts, lines)
    return 0
