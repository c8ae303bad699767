"""The command pool: a setting's retrained models to one small file, and back."""

import argparse

from kit.errors import InputError
from kit.tools.cli import answer
from local_eval.published import export_pool, import_pool
from local_eval.setting import reopen

_OF_ONE = {"export": ("setting", "n_models", "without_original"), "import": ("data_root", "cache_dir", "architecture")}


def pool(args: argparse.Namespace) -> int:
    for direction, names in _OF_ONE.items():
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name)]
        if given and direction != args.direction:
            raise InputError(f"pool {args.direction}: {' '.join(given)}: is for {direction} alone: leave it out")
    if args.direction == "export":
        if args.setting is None:
            raise InputError("pool export: give --setting FOLDER, the folder that run or retrain made")
        workspace = reopen(args.setting, checked=True)
        n_models = export_pool(workspace, args.file, args.n_models, original=not args.without_original)
        n_bytes = args.file.stat().st_size
        facts = {"file": str(args.file), "n_models": n_models, "bytes": n_bytes}
        answer(args, facts, [f"{n_models} retrained models in {n_bytes / 1e6:.1f} MB: {args.file}"])
        return 0
    where = {"data_root": args.data_root, "cache_dir": args.cache_dir, "progress": not args.quiet}
    workspace, n_models = import_pool(args.file, args.work_dir, architecture=args.architecture, **where)
    lines = [
        f"{n_models} retrained models{' and the original' * workspace.original_path.exists()}: {workspace.folder}",
        f"score a method against them: python -m local_eval run --setting {workspace.folder} --method finetune "
        f"--n-models {min(n_models, 32)}",
    ]
    answer(args, {"setting": str(workspace.folder), "n_models": n_models}, lines)
    return 0
