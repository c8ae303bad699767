"""The commands score and compare: pools, archives or bare confidences to a table with intervals and diagnosis."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kit.cli import answer
from kit.errors import InputError
from kit.submission import open_archive
from local_eval.assess import DISTANCES, FEWEST, agreement, assess, assess_confidences, measures
from local_eval.audit.predict import ranking_warning
from local_eval.commands import options as shared
from local_eval.commands.pools import cut_notes, given_notes, n_models_of, open_pools
from local_eval.distances import Distance, distances
from local_eval.evaluate import FORMS, Samples, evaluate, read_samples
from local_eval.metric import MetricSpec, checked_samples, forgetting_quality
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
from local_eval.unlearned import limit_notes

_LARGEST_BYTES = 1 << 31  # of confidences: 512 models on 250,000 examples, twice


def compare(args: argparse.Namespace) -> int:
    """Score two pools or more, and say how sure their order is."""
    return _score_pools(args, fewest=2)


def score(args: argparse.Namespace) -> int:
    if args.confidences:
        return _score_arrays(args)
    if not args.pools:
        raise InputError(
            "score: give the folder of a pool, checkpoints (an archive, a folder, files), or --confidences FILE.npz"
        )
    return _score_pools(args)


def _score_pools(args: argparse.Namespace, fewest: int = 1) -> int:
    """Score pools of one setting; with intervals, null, diagnosis and other measures unless --brief."""
    spec, opened = shared.spec_of(args), open_pools(args)
    if len(opened.pools) < fewest:
        raise InputError(f"compare: got {len(opened.pools)} pools: give two or more")
    n_models = n_models_of(args, opened)
    shared.at_least(n_models)
    pools = opened.pools
    samples = read_samples(opened.workspace, pools, n_models)
    rows = evaluate(samples, spec, FORMS[args.attacks])
    distance = distances(samples)
    further = {"command": shared.command_line(args), "attacks": args.attacks}
    facts = facts_of(opened.workspace, rows, pools, distance, **further)
    lines = [*aligned(table_of(rows)), "", *aligned(distance_table(rows, distance)), ""]
    facts["notes"] = [*cut_notes(args, opened), *given_notes(opened, samples), *limit_notes(pools), *notes_on(rows)]
    lines += facts["notes"]
    if not args.brief and n_models >= FEWEST:
        scores = {row.name: row.score for row in rows if row.name in pools}
        more_facts, more_lines = _assessed(samples, spec, scores, distance, not args.quiet)
        facts |= more_facts
        lines += more_lines
    answer(args, facts, lines)
    return 0


def _assessed(
    samples: Samples, spec: MetricSpec, scores: dict[str, float], distance: Mapping[str, Distance], progress: bool
) -> tuple[dict[str, Any], list[str]]:
    """Facts and lines of everything beyond the table."""
    assessments, above = assess(samples, spec, progress=progress)
    measured = measures(samples, distance)
    ranks = agreement(scores, measured)
    lines = [line for assessment in assessments for line in ("", *assessment_lines(assessment))]
    lines += ["", *probability_lines(above), "", *measure_lines(measured, without=DISTANCES)]
    lines += ["", *agreement_lines(ranks)] if ranks else []
    return assessment_facts(assessments, above, measured, ranks), lines


def _score_arrays(args: argparse.Namespace) -> int:
    """Confidences from anywhere: epsilon of each example and the forgetting quality, and what F is worth."""
    spec = shared.spec_of(args)
    samples = checked_samples(*_arrays(args.confidences, ("unlearned_confidence", "retrained_confidence")))
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


def _arrays(path: Path, names: tuple[str, ...]) -> list[np.ndarray]:
    """The arrays of a file from anywhere."""
    try:
        with open_archive(path) as file:
            unpacked, packed = sum(info.file_size for info in file.infolist()), path.stat().st_size
        if unpacked > _LARGEST_BYTES or unpacked > 100 * packed:  # confidences are noise: they hardly compress
            raise ValueError(f"{packed:,} bytes that unpack to {unpacked:,}")
        with np.load(path, allow_pickle=False) as file:
            if missing := [name for name in names if name not in file]:
                raise InputError(f"{path}: has no array {missing[0]}: it holds {', '.join(file.files)}")
            return [file[name] for name in names]
    except InputError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds for a broken file
        raise InputError(f"{path}: is no readable .npz of arrays ({error})") from error
