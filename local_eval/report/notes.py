"""The sentences under the table: what a reader must know to read its numbers."""

from collections.abc import Sequence

from local_eval.audit.predict import ranking_warning
from local_eval.evaluate import DO_NOTHING, NULL, Row


def notes_on(rows: Sequence[Row]) -> list[str]:
    """Generalisation gap, memorisation, attainable score and too small an N."""
    by_name = {row.name: row for row in rows}
    notes = []
    if nothing := by_name.get(DO_NOTHING):
        gap = nothing.retain_accuracy - nothing.test_accuracy
        notes.append(
            f"original model: retain {nothing.retain_accuracy:.1%}, forget {nothing.forget_accuracy:.1%}, "
            f"test {nothing.test_accuracy:.1%}; generalisation gap {gap:.1%} (the competition's: 2.6%)"
        )
    if null := by_name.get(NULL):
        notes.append(
            f"a perfect unlearner scores about {null.forgetting_quality:.3f} here, not 1: the null row compares "
            f"retrained models with each other ({null.n_models} against {null.n_models})"
        )
    if warning := ranking_warning(max(row.n_models for row in rows)):
        notes.append(warning)
    return notes
