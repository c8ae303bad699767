"""A setting whose retrained models came as files: a researcher's own, trained elsewhere, assessed here as they are.

Its recipe is named by the bytes of those files, so that its pools are never mixed with those of models trained here.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_stubs.splits import Splits
from kit.archive import serialize
from kit.errors import InputError
from kit.ledger import write_atomically
from local_eval.archived import digest_of, fill
from local_eval.checkpoints import digests, find, load_checkpoint
from local_eval.evaluate import Samples
from local_eval.recipes import GIVEN
from local_eval.retrained import original_pool, retrained_pool
from local_eval.setting import Setting, Workspace, keep_workspace

_SURELY = 0.05  # above the share of the largest class, from which accuracy is more than a guess


def open_given(
    setting: Setting,
    splits: Splits,
    root: Path,
    retrained: Sequence[Path],
    original: Path | None = None,
    *,
    devices: Sequence[str] = (),
    progress: bool = True,
) -> Workspace:
    """The workspace below `root` of retrained models, and if given the original one, that came as files.

    setting: data and architecture; its recipe is replaced by the files' name. retrained: what
    `local_eval.checkpoints.find` takes; original: one file. Raises InputError, naming the file, where one does not fit,
    and where two retrained models are copies of each other.
    """
    checkpoints = find(retrained)
    named = digests(checkpoints)
    start = find([original]) if original is not None else []
    if len(start) > 1:
        raise InputError(f"{original}: holds {len(start)} checkpoints: the original model is one")
    digest = digest_of([*named, *(["original", *digests(start)] if start else [])])
    setting = replace(setting, recipe=f"{GIVEN}{digest[:16]}", epochs=None, lr=None, batch_size=None)
    workspace = keep_workspace(setting, splits, root)
    options = {"devices": devices, "progress": progress}
    pool = retrained_pool(workspace)
    fill(workspace, checkpoints, pool, **options)
    logits = pool.read(len(checkpoints))["forget"]
    first_of: dict[bytes, int] = {}
    for index, values in enumerate(logits):
        if (twin := first_of.setdefault(values.tobytes(), index)) != index:
            raise InputError(
                f"{checkpoints[index]}: is a copy of {checkpoints[twin]}: each retrained model needs a seed of its own"
            )
    if start:
        fill(workspace, start, original_pool(workspace), **options)
        if not workspace.original_path.exists():
            state = load_checkpoint(start[0], workspace.net()).state_dict()
            write_atomically(workspace.original_path, serialize(state))
    return workspace


def doubts(samples: Samples) -> list[str]:
    """What speaks against models that came as files having been trained on these images: a sentence for each sample
    that is right on no more retain examples than a guess."""
    labels = samples.retrained.labels["retain"]
    guess = float(np.bincount(labels).max() / len(labels))
    found = []
    for name, sample in {"the retrained models": samples.retrained, **samples.methods}.items():
        right = float(sample.accuracy["retain"].mean())
        if right <= guess + _SURELY:
            found.append(
                f"{name}: right on {right:.1%} of the retain examples, as a guess is ({guess:.1%}): are these the "
                "images that they were trained on, with values 0..255 (scaling belongs into the net), and the classes "
                "in this order?"
            )
    return found
