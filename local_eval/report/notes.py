"""The sentences under the table: what a reader must know to read its numbers."""

from collections.abc import Sequence

from kit.budget import format_duration
from local_eval.audit.predict import ranking_warning
from local_eval.evaluate import DO_NOTHING, NULL, Row

_SHORT_S = 60.0  # a retraining on a stand-in: start-up and loading count as much as training
TIME_LIMIT = 0.2  # of retraining's time, in the competition's technical report


def notes_on(rows: Sequence[Row]) -> list[str]:
    """Generalisation gap, memorisation, attainable score, what class forgetting changes, time and too small an N."""
    by_name = {row.name: row for row in rows}
    notes = []
    if nothing := by_name.get(DO_NOTHING):
        gap = nothing.retain_accuracy - nothing.test_accuracy
        notes.append(
            f"original model: retain {nothing.retain_accuracy:.1%}, forget {nothing.forget_accuracy:.1%}, "
            f"test {nothing.test_accuracy:.1%}; generalisation gap {gap:.1%} (the competition's: 2.6%)"
        )
        if nothing.forgotten_test_accuracy is not None:
            notes.append(
                "whole classes are forgotten: the test accuracy that counts is that of the other classes, since "
                "retrained models know no forgotten one; the original gets "
                f"{nothing.forgotten_test_accuracy:.1%} of the forgotten classes' test images right"
            )
    if null := by_name.get(NULL):
        notes.append(
            f"a perfect unlearner scores about {null.forgetting_quality:.3f} here, not 1: so much do as "
            f"many retrained models get against each other ({null.n_models} against {null.n_models})"
        )
    notes += [
        f"{row.name} {time_sentence(row)}"
        for row in rows
        if row.name not in (DO_NOTHING, NULL) and (row.time_ratio or 0) > TIME_LIMIT
    ]
    if warning := ranking_warning(max(row.n_models for row in rows)):
        notes.append(warning)
    return notes


def time_sentence(row: Row) -> str:
    """What a share of the time of retraining means: nothing of the competition's, where retraining takes seconds."""
    share, retraining_s = f"takes {row.time_ratio:.0%} of the time of retraining here", row.seconds / row.time_ratio
    limit = f"the competition's report rejects methods above {TIME_LIMIT:.0%}"
    if retraining_s < _SHORT_S:
        return (
            f"{share}, but that takes {format_duration(retraining_s)} only, so the share says nothing of the "
            f"competition's limit ({TIME_LIMIT:.0%} of a retraining of 30 epochs on its data)"
        )
    return f"{share}: {limit}, of a retraining of 30 epochs"
