"""Local evaluation: retrain, unlearn, score, compare."""
