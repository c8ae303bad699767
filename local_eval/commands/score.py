"""The commands score and compare: pools, archives or bare confidences to a table with intervals and diagnosis."""

import argparse
from collections.abc import Mapping
from typing import Any

from kit.errors import InputError
from kit.tools.cli import answer
from local_eval.assess import DISTANCES, FEWEST, Assessment, agreement, assess, measures
from local_eval.commands import options as shared
from local_eval.commands.pools import cut_notes, given_notes, keep_label, keep_scores, n_models_of, open_pools
from local_eval.commands.score_options import spec_of
from local_eval.distances import Distance, distances
from local_eval.evaluate import Samples, evaluate, read_samples
from local_eval.metric import FORMS, MetricSpec
from local_eval.report.assessment import (
    agreement_lines,
    assessment_facts,
    assessment_lines,
    measure_lines,
    probability_lines,
)
from local_eval.report.facts import score_options
from local_eval.report.notes import notes_on
from local_eval.report.table import aligned, distance_table, row_records, table_of
from local_eval.report.write import facts_of
from local_eval.results import check_files, write_csv
from local_eval.unlearned import limit_notes


def compare(args: argparse.Namespace) -> int:
    """Score two pools or more, and say how sure their order is."""
    if not args.pools:
        raise InputError("compare: give the folder of a setting, or two pools or archives of one")
    return _score_pools(args, fewest=2)


def score(args: argparse.Namespace) -> int:
    if args.labels:
        raise InputError("--labels: belongs to --logits, whose examples they are of")
    if not args.pools:
        raise InputError(
            "score: give the folder of a pool, checkpoints (an archive, a folder, files), --logits or --confidences"
        )
    return _score_pools(args)


def _score_pools(args: argparse.Namespace, fewest: int = 1) -> int:
    """Score pools of one setting; with intervals, null, diagnosis and other measures unless --brief."""
    check_files(args.csv)
    if args.n_models is not None:
        shared.at_least(args.n_models)
    spec, opened = spec_of(args), open_pools(args)
    if len(opened.pools) < fewest:
        raise InputError(f"compare: got {len(opened.pools)} pools: give two or more")
    keep_label(args, list(opened.pools.values()))
    n_models = n_models_of(args, opened)
    shared.at_least(n_models)
    pools = opened.pools
    samples = read_samples(opened.workspace, pools, n_models)
    rows = evaluate(samples, spec, FORMS[args.attacks])
    own_options = score_options(spec, args.attacks)
    keep_scores(pools, rows, own_options)
    distance = distances(samples)
    further = {"command": shared.command_line(args), "attacks": args.attacks}
    further["score_options"] = own_options
    facts = facts_of(opened.workspace, rows, pools, distance, **further)
    lines = [*aligned(table_of(rows)), "", *aligned(distance_table(rows, distance)), ""]
    facts["notes"] = [*cut_notes(args, opened), *given_notes(opened, samples), *limit_notes(pools), *notes_on(rows)]
    lines += facts["notes"]
    assessments: dict[str, Assessment] = {}
    if not args.brief and n_models >= FEWEST and len(opened.workspace.splits.forget) > 1:
        scores = {row.name: row.score for row in rows if row.name in pools}
        assessments, more_facts, more_lines = _assessed(samples, spec, args.attacks, scores, distance, not args.quiet)
        facts |= more_facts
        lines += more_lines
    write_csv(args.csv, row_records(rows, assessments, args.attacks))
    answer(args, facts, lines)
    return 0


def _assessed(
    samples: Samples,
    spec: MetricSpec,
    attacks: str,
    scores: dict[str, float],
    distance: Mapping[str, Distance],
    progress: bool,
) -> tuple[dict[str, Assessment], dict[str, Any], list[str]]:
    """Assessments, facts and lines of everything beyond the table."""
    assessments, above = assess(samples, spec, attacks=attacks, progress=progress)
    measured = measures(samples, distance)
    ranks = agreement(scores, measured)
    lines = [line for assessment in assessments for line in ("", *assessment_lines(assessment))]
    lines += ["", *probability_lines(above, samples.n_models), "", *measure_lines(measured, without=DISTANCES)]
    lines += ["", *agreement_lines(ranks)] if ranks else []
    facts = assessment_facts(assessments, above, measured, ranks)
    return {assessment.name: assessment for assessment in assessments}, facts, lines
