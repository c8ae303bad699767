"""Runtime-budgeted machine unlearning for the NeurIPS 2023 competition: N unlearned checkpoints under a time limit.

Needs torch (2.0 or later), torchvision, tqdm and the standard library only, so that it travels to Kaggle.
Public: `emit`, `submit`, `profile`.
"""

from kit.tools.public import publish

__version__ = "0.1.0"
__all__ = ["emit", "profile", "submit"]

publish(__name__, {"emit": "kit.emit", "profile": "kit.tools.profile", "submit": "kit.submit"})
