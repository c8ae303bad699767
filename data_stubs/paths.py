"""Where downloaded and decoded data is kept."""

import os
from pathlib import Path


def default_cache() -> Path:
    """$XDG_CACHE_HOME/unlearning-kit, or ~/.cache/unlearning-kit."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unlearning-kit"
