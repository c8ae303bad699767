"""The commands score and compare: pools, archives or bare confidences to a table with intervals and diagnosis."""

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np

from kit.cli import answer
from kit.errors import InputError
from kit.submission import open_archive
from kit.workers import n_cores
from local_eval.archived import fill_from_archive
from local_eval.assess import DISTANCES, FEWEST, agreement, assess, assess_confidences, measures
from local_eval.audit.predict import ranking_warning
from local_eval.distances import Distance, distances
from local_eval.evaluate import FORMS, Samples, evaluate, read_samples
from local_eval.metric import MetricSpec, bins_as_in_code, bins_as_in_report, checked_samples, forgetting_quality
from local_eval.pool import ModelPool
from local_eval.report.assessment import (
    agreement_lines,
    assessment_facts,
    assessment_lines,
    measure_lines,
    probability_lines,
)
from local_eval.report.notes import notes_on
from local_eval.report.table import aligned, distance_table, table_of
from local_eval.report.write import facts_of
from local_eval.retrained import retrained_pool
from local_eval.setting import Workspace, reopen

_LARGEST_BYTES = 1 << 31  # of confidences: 512 models on 250,000 examples, twice
BINS = {"code": bins_as_in_code, "report": bins_as_in_report}


def at_least_two(n_models: int) -> None:
    if n_models < 2:
        raise InputError(f"--n-models {n_models}: the score compares distributions and needs at least 2 models")


def compare_command(args: argparse.Namespace) -> int:
    """Score two pools or more, and say how sure their order is."""
    if len(args.pools) < 2:
        raise InputError(f"compare: got {len(args.pools)} pools: give two or more")
    args.confidences = None
    return score_command(args)


def score_command(args: argparse.Namespace) -> int:
    """Score pools of one setting; with intervals, null, diagnosis and other measures unless --brief."""
    if args.confidences:
        return _score_arrays(args)
    if not args.pools:
        raise InputError("score: give the folder of a pool, an archive, or --confidences FILE.npz")
    workspace, pools = _open(args)
    have = map(len, (*pools.values(), retrained_pool(workspace)))
    n_models = min(have) if args.n_models is None else args.n_models
    at_least_two(n_models)
    spec = spec_of(args)
    samples = read_samples(workspace, pools, n_models)
    rows = evaluate(samples, spec, FORMS[args.attacks])
    distance = distances(samples)
    facts = facts_of(workspace, rows, pools, distance, attacks=args.attacks)
    lines = [*aligned(table_of(rows)), "", *aligned(distance_table(rows, distance)), "", *notes_on(rows)]
    if not args.brief and n_models >= FEWEST:
        more_facts, more_lines = _assessed(
            samples, spec, {row.name: row.score for row in rows if row.name in pools}, distance, not args.quiet
        )
        facts |= more_facts
        lines += more_lines
    answer(args, facts, lines)
    return 0


def spec_of(args: argparse.Namespace) -> MetricSpec:
    """The score's constants from the options; the competition's unless told otherwise."""
    return MetricSpec(delta=args.delta, cap=args.cap, bins=BINS[args.bins])


def _assessed(
    samples: Samples, spec: MetricSpec, scores: dict[str, float], distance: Mapping[str, Distance], progress: bool
) -> tuple[dict[str, Any], list[str]]:
    """Facts and lines of everything beyond the table."""
    assessments, above = assess(samples, spec, progress=progress)
    measured = measures(samples, distance)
    ranks = agreement(scores, measured)
    lines = []
    for assessment in assessments:
        lines += ["", *assessment_lines(assessment)]
    lines += ["", *probability_lines(above), "", *measure_lines(measured, without=DISTANCES)]
    if ranks:
        lines += ["", *agreement_lines(ranks)]
    return assessment_facts(assessments, above, measured, ranks), lines


def _open(args: argparse.Namespace) -> tuple[Workspace, dict[str, ModelPool]]:
    """The setting and the pools that the arguments name; archives are read into pools."""
    folders = [path for path in args.pools if path.suffix != ".zip"]
    if args.setting is None and not folders:
        raise InputError("score: an archive needs --setting FOLDER: the folder of a run with retrained models")
    workspace = reopen(args.setting or folders[0].resolve().parent)
    pools = [
        fill_from_archive(workspace, path, workers=args.workers or n_cores(), progress=not args.quiet)
        if path.suffix == ".zip"
        else ModelPool.open(path)
        for path in args.pools
    ]
    return workspace, {_name(pool, pools): pool for pool in pools}


def _name(pool: ModelPool, pools: list[ModelPool]) -> str:
    """The method's name, with the folder's where two pools are of one method."""
    name = pool.identity.get("method", pool.folder.name)
    twins = [other for other in pools if other.identity.get("method") == name]
    return name if len(twins) < 2 else pool.folder.name


def _score_arrays(args: argparse.Namespace) -> int:
    """Confidences from anywhere: epsilon of each example and the forgetting quality, and what F is worth."""
    names = ("unlearned_confidence", "retrained_confidence")
    try:
        with open_archive(args.confidences) as file:
            unpacked, packed = sum(info.file_size for info in file.infolist()), args.confidences.stat().st_size
        if unpacked > _LARGEST_BYTES or unpacked > 100 * packed:  # confidences are noise: they hardly compress
            raise ValueError(f"{packed:,} bytes that unpack to {unpacked:,}")
        with np.load(args.confidences, allow_pickle=False) as file:
            if missing := [name for name in names if name not in file]:
                raise InputError(f"{args.confidences}: has no array {missing[0]}: it holds {', '.join(file.files)}")
            samples = checked_samples(*(file[name] for name in names))
    except InputError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds for a broken file
        raise InputError(f"{args.confidences}: is no readable .npz of arrays ({error})") from error
    spec = spec_of(args)
    result = FORMS[args.attacks](*samples, spec)
    n_models = min(map(len, samples))
    quality = forgetting_quality(result.epsilon, n_models, spec)
    facts = {
        "epsilon": result.epsilon.tolist(),
        "forgetting_quality": quality,
        "mean_epsilon": float(result.epsilon.mean()),
        "n_models": n_models,
        "n_examples": len(result.epsilon),
        "attacks": args.attacks,
    }
    lines = [
        f"forgetting quality {quality:.6f}, mean epsilon {facts['mean_epsilon']:.4f} "
        f"({n_models} models, {facts['n_examples']} examples, {args.attacks} attacks)"
    ]
    if not args.brief and n_models >= FEWEST and facts["n_examples"] > 1:
        name = args.confidences.stem
        assessments, above = assess_confidences({name: samples[0]}, samples[1], spec=spec, progress=not args.quiet)
        facts |= assessment_facts(assessments, above, {}, None)
        lines += ["", *assessment_lines(assessments[0])]
    if warning := ranking_warning(n_models):
        lines.append(warning)
    answer(args, facts, lines)
    return 0
