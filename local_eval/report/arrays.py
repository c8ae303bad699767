"""What arrays alone say: as lines for the terminal, plain values for JSON and a page."""

from typing import Any

from local_eval.arrays import ArrayScore
from local_eval.report.assessment import assessment_facts, assessment_lines, measure_lines


def array_lines(found: ArrayScore) -> list[str]:
    held = (
        f"{found.n_models} models"
        if found.n_unlearned == found.n_retrained
        else (f"{found.n_unlearned} unlearned and {found.n_retrained} retrained models")
    )
    lines = [
        f"forgetting quality {found.forgetting_quality:.6f}, mean epsilon {found.epsilon.mean():.4f} "
        f"({held}, {len(found.epsilon)} examples, {found.attacks} attacks)"
    ]
    if found.assessment:
        lines += ["", *assessment_lines(found.assessment)]
    if found.measures:
        lines += ["", *measure_lines({found.name: found.measures})]
    return [*lines, *found.notes]


def array_facts(found: ArrayScore) -> dict[str, Any]:
    facts = {
        "epsilon": found.epsilon.tolist(),
        "forgetting_quality": found.forgetting_quality,
        "mean_epsilon": float(found.epsilon.mean()),
        "n_models": found.n_models,
        "n_unlearned": found.n_unlearned,
        "n_retrained": found.n_retrained,
        "n_examples": len(found.epsilon),
        "attacks": found.attacks,
        "notes": list(found.notes),
    }
    if found.assessment:
        facts |= assessment_facts([found.assessment], {}, {}, None)
    return facts | {"measures": {found.name: dict(found.measures)} if found.measures else {}}
