"""Local evaluation: retrain, unlearn, score, compare.

Public: `Setting`, `prepare`, `retrain`, `unlearn`, `assess`, `score_arrays`, `report`.
"""

from kit.tools.public import publish

__all__ = ["Setting", "assess", "prepare", "report", "retrain", "score_arrays", "unlearn"]

publish(__name__, dict.fromkeys(__all__, "local_eval.api"))
