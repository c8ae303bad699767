"""Arrays that a command line names, --confidences or --logits with --labels: read and judged, without torch."""

import argparse

from kit.errors import InputError
from kit.tools.cli import NOTHING_LEFT, answer
from local_eval.arrays import ArrayScore, judge, read_confidences, read_logits
from local_eval.commands.score_options import spec_of
from local_eval.results import check_files, write_csv

# Options that say which pools are compared, and of what.
_OF_POOLS = (
    "retrained",
    "original",
    "n_models",
    "setting",
    "source",
    "size",
    "n_train",
    "forget",
    "data_seed",
    "architecture",
    "n_retain_sample",
)


def array_score(args: argparse.Namespace) -> ArrayScore:
    """What the arrays of the command line say; InputError where pools or both kinds are given too."""
    if args.pools or (args.confidences and args.logits):
        raise InputError("give pools, --confidences or --logits: one of them at a time")
    if given := [f"--{name.replace('_', '-')}" for name in _OF_POOLS if getattr(args, name) is not None]:
        raise InputError(f"{' '.join(given)}: says something of pools, and arrays are none: leave it out")
    if args.confidences and args.labels:
        raise InputError("--labels: belongs to --logits: confidences are of the label already: leave it out")
    options = {"spec": spec_of(args), "attacks": args.attacks, "progress": not args.quiet}
    options["brief"] = getattr(args, "brief", False)
    if args.confidences:
        return judge(*read_confidences(args.confidences), name=args.confidences.stem, **options)
    return judge(*read_logits(args.logits, args.labels), name=args.logits[0].stem, **options)


def score_arrays(args: argparse.Namespace) -> int:
    """Logits or confidences from anywhere: epsilon of each example and the forgetting quality, and what F is worth."""
    if args.label is not None:
        raise InputError(f"--label {args.label}: is for a pool, and arrays are none: leave it out")
    check_files(args.csv)
    args.interrupted = NOTHING_LEFT
    found = array_score(args)
    write_csv(args.csv, found.records())
    answer(args, found.facts(), found.lines())
    return 0
