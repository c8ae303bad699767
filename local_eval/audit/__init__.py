"""How sure a score is, what it could be at best, and what keeps it from there."""
