"""One seed per checkpoint, derived so that no two runs of one submission, and no retry, share one."""

import hashlib
import random
import sys

import torch


def checkpoint_seed(seed: int, index: int, attempt: int = 0) -> int:
    """Seed of checkpoint `index`, an integer in [0, 2^63): a hash of the run's seed, the index and the attempt."""
    digest = hashlib.sha256(f"{seed}/{index}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_everything(seed: int) -> None:
    """Seed torch on all devices, Python's random and, where it is loaded, numpy: whatever a method draws from."""
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
