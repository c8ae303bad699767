"""What the options of the score stand for."""

import argparse

from local_eval.metric import BINS, MetricSpec


def spec_of(args: argparse.Namespace) -> MetricSpec:
    """The score's constants; the competition's unless told otherwise."""
    return MetricSpec(delta=args.delta, cap=args.cap, bins=BINS[args.bins])
