"""The commands train, retrain and unlearn: the steps of `run` one by one."""

import argparse

from kit.tools.cli import answer
from local_eval.commands import options as shared
from local_eval.commands.pools import begun, note_retrained
from local_eval.retrained import fill_retrained
from local_eval.unlearned import fill_unlearned


def train(args: argparse.Namespace) -> int:
    workspace = shared.workspace_of(args)
    fill_retrained(workspace, 0, devices=shared.devices_for(args, workspace, 1), progress=not args.quiet)
    answer(args, {"original_model": str(workspace.original_path)}, [f"original model: {workspace.original_path}"])
    return 0


def retrain(args: argparse.Namespace) -> int:
    shared.at_least(args.n_models, 1)
    workspace = shared.workspace_of(args)
    note_retrained(workspace, args.n_models)
    devices = shared.devices_for(args, workspace, args.n_models)
    pool = fill_retrained(workspace, args.n_models, devices=devices, progress=not args.quiet)
    answer(args, {"pool": str(pool.folder)}, [f"{args.n_models} retrained models: {pool.folder}"])
    return 0


def unlearn(args: argparse.Namespace) -> int:
    shared.at_least(args.n_models, 1)
    method, workspace = shared.method_of(args), shared.workspace_of(args)
    begun(args, workspace, method, args.limit_s)
    pool = fill_unlearned(
        workspace,
        method,
        args.n_models,
        seed=args.seed,
        limit=args.limit_s,
        devices=shared.devices_for(args, workspace, args.n_models),
        progress=not args.quiet,
    )
    answer(args, {"pool": str(pool.folder)}, [f"{args.n_models} models of {method.name}: {pool.folder}"])
    return 0
