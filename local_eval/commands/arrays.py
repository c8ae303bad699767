"""Arrays that a command line names, --confidences or --logits with --labels: read and judged."""

import argparse

from kit.errors import InputError
from local_eval.arrays import ArrayScore, judge, read_confidences, read_logits
from local_eval.commands import options as shared


def array_score(args: argparse.Namespace) -> ArrayScore:
    """What the arrays of the command line say; InputError where pools or both kinds are given too."""
    if args.pools or (args.confidences and args.logits):
        raise InputError("give pools, --confidences or --logits: one of them at a time")
    options = {"spec": shared.spec_of(args), "attacks": args.attacks, "progress": not args.quiet}
    options["brief"] = getattr(args, "brief", False)
    if args.confidences:
        return judge(*read_confidences(args.confidences), name=args.confidences.stem, **options)
    return judge(*read_logits(args.logits, args.labels), name=args.logits[0].stem, **options)
