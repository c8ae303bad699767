"""The commands train, retrain and unlearn: the steps of `run` one by one."""

import argparse

from kit.errors import InputError
from kit.tools.cli import answer
from local_eval.commands import options as shared
from local_eval.commands.pools import begun, note_retrained
from local_eval.pool import ModelPool
from local_eval.retrained import fill_retrained
from local_eval.shard import WHOLE, Shard, parse_shard
from local_eval.unlearned import fill_unlearned


def train(args: argparse.Namespace) -> int:
    workspace = shared.workspace_of(args)
    fill_retrained(workspace, 0, devices=shared.devices_for(args, workspace, 1), progress=not args.quiet)
    answer(args, {"original_model": str(workspace.original_path)}, [f"original model: {workspace.original_path}"])
    return 0


def retrain(args: argparse.Namespace) -> int:
    shared.at_least(args.n_models, 1)
    shard, workspace = parse_shard(args.shard), shared.workspace_of(args)
    note_retrained(workspace, args.n_models)
    devices = shared.devices_for(args, workspace, args.n_models)
    pool = fill_retrained(workspace, args.n_models, shard=shard, devices=devices, progress=not args.quiet)
    _told(args, pool, shard, "retrained models")
    return 0


def unlearn(args: argparse.Namespace) -> int:
    shared.at_least(args.n_models, 1)
    shard = parse_shard(args.shard)
    if args.fresh and shard != WHOLE:
        raise InputError(f"--fresh: would remove what other parts than {args.shard} made: delete the pool once instead")
    method, workspace = shared.method_of(args), shared.workspace_of(args)
    begun(args, workspace, method, args.limit_s)
    pool = fill_unlearned(
        workspace,
        method,
        args.n_models,
        seed=args.seed,
        limit=args.limit_s,
        shard=shard,
        devices=shared.devices_for(args, workspace, args.n_models),
        progress=not args.quiet,
    )
    _told(args, pool, shard, f"models of {method.name}")
    return 0


def _told(args: argparse.Namespace, pool: ModelPool, shard: Shard, what: str) -> None:
    """How many of this part there are, which are all that were asked for; and how many are missing on the whole."""
    n_here, n_missing = len(shard.of(range(args.n_models))), len(pool.missing(args.n_models))
    facts = {"pool": str(pool.folder)}
    line = f"{n_here} {what}: {pool.folder}"
    if shard != WHOLE:
        facts |= {"shard": args.shard, "n_missing": n_missing}
        line += f" (part {args.shard} of {args.n_models}; {n_missing} are still missing)"
    answer(args, facts, [line])
