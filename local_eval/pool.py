"""ModelPool: the logits of N models on forget, retain sample and test set; on disk, extendable, resumable. Of model 0
the weights too, for pictures."""

import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data_stubs.splits import Part
from kit.archive import serialize
from kit.competition import load_state
from kit.errors import InputError
from kit.ledger import write_atomically
from local_eval.inference import predict

EVALUATED = ("forget", "retain", "test")
_BATCH_SIZE = 500


class ModelPool:
    """A folder with one file a model, so that models can be added by several processes and in any order.

    identity: what all models of the pool share (setting, kind, method, seed, ...). An existing folder with another
    identity is refused with InputError. Logits are float32, (n_examples, n_classes) a model.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder = Path(folder)
        self.identity = dict(identity)
        meta = self.folder / "pool.json"
        if meta.exists():
            _check_identity(read_json(meta), self.identity, meta)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(meta, (json.dumps(self.identity, indent=2) + "\n").encode())

    @classmethod
    def open(cls, folder: Path) -> "ModelPool":
        """The pool that a folder holds; InputError where it holds none."""
        return cls(folder, read_json(Path(folder) / "pool.json"))

    def _path(self, index: int) -> Path:
        return self.folder / f"model_{index:05d}.npz"

    @property
    def _weights(self) -> Path:
        return self.folder / "model_00000.pth"

    def __contains__(self, index: int) -> bool:
        return self._path(index).exists()

    def __len__(self) -> int:
        """How many models there are before the first that is missing: those that can be compared."""
        return next(index for index in count() if index not in self)

    def missing(self, n_models: int) -> list[int]:
        """Which of the first n_models have no file yet."""
        return [index for index in range(n_models) if index not in self]

    def add(
        self, index: int, logits: Mapping[str, np.ndarray], seconds: float, net: nn.Module | None = None, **facts: Any
    ) -> None:
        """Write one model's logits; the file appears complete or not at all. net: the model, whose weights are kept if
        it is the first."""
        if index == 0 and net is not None:
            write_atomically(self._weights, serialize(net.state_dict()))
        buffer = io.BytesIO()
        np.savez(buffer, seconds=seconds, facts=json.dumps(facts), **logits)
        write_atomically(self._path(index), buffer.getvalue())

    def read(self, n_models: int) -> dict[str, np.ndarray]:
        """Logits of the first n_models: part -> float32 (n_models, n_examples, n_classes); and `seconds` (n_models,).

        Raises InputError naming the file where one is missing, broken or not finite.
        """
        first = self._read_one(0)
        arrays = {name: np.empty((n_models, *values.shape), values.dtype) for name, values in first.items()}
        for index in range(n_models):  # one model at a time: never a second copy of all of them
            for name, values in self._read_one(index).items() if index else first.items():
                if values.shape != arrays[name].shape[1:]:
                    raise InputError(
                        f"{self._path(index)}: has {values.shape} logits of the {name} set, model 0 of this pool "
                        f"{arrays[name].shape[1:]}: delete it and run the same command again"
                    )
                arrays[name][index] = values
        return arrays

    def first_model(self, net: nn.Module) -> nn.Module:
        """`net` with the weights of model 0, in evaluation mode; InputError where they were not kept or are broken."""
        if not self._weights.exists():
            raise InputError("its pool has logits alone, as of models from elsewhere or of an older version")
        try:
            return load_state(self._weights, net).eval()
        except InputError as error:
            raise InputError(f"{self._weights} is damaged or of another net") from error

    def facts(self, index: int) -> dict[str, Any]:
        """What was kept of one model besides its logits."""
        with np.load(self._path(index), allow_pickle=False) as file:
            return json.loads(str(file["facts"]))

    def _read_one(self, index: int) -> dict[str, np.ndarray]:
        path = self._path(index)
        try:
            with np.load(path, allow_pickle=False) as file:
                row = {name: file[name] for name in (*EVALUATED, "seconds")}
        except FileNotFoundError as error:
            raise InputError(f"{path}: model {index} is not in the pool: run the step that fills it") from error
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{path}: is broken ({error}): delete it and run the same command again") from error
        if not all(np.isfinite(values).all() for values in row.values()):
            raise InputError(f"{path}: has NaN or infinite logits: the model behind it is broken")
        return row


class OnDevice(NamedTuple):
    """Images and labels of a part on the device that is to look at them, uint8 as they are stored."""

    images: Tensor
    labels: Tensor


def on_device(parts: Mapping[str, Part], device: torch.device | str) -> Mapping[str, Part | OnDevice]:
    """The parts for `logits_of`, moved once; for the CPU as they are, memory-mapped files that processes share."""
    if torch.device(device).type == "cpu":
        return parts
    return {
        name: OnDevice(*(torch.tensor(array).to(device) for array in (part.images, part.labels)))
        for name, part in parts.items()
    }


def logits_of(net: nn.Module, parts: Mapping[str, Part | OnDevice]) -> dict[str, np.ndarray]:
    """Logits of one net on each part: name -> float32 (n_examples, n_classes), in evaluation mode."""
    return {name: predict(net, _batches(part)).numpy() for name, part in parts.items()}


def _batches(part: Part | OnDevice) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(part.labels), _BATCH_SIZE):
        pair = (array[start : start + _BATCH_SIZE] for array in (part.images, part.labels))
        yield tuple(array if isinstance(array, Tensor) else torch.tensor(array) for array in pair)


def _check_identity(found: Mapping[str, Any], expected: Mapping[str, Any], meta: Path) -> None:
    if changed := sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name)):
        name = changed[0]
        remedy = "choose another folder or delete this one"
        if name == "setting":  # each lies in a folder that bears the setting's name
            remedy = "call the folder around it as before if it was renamed, else choose another or delete this one"
        raise InputError(
            f"{meta}: this pool has {name} {found.get(name)!r}, asked for was {expected.get(name)!r}: {remedy}"
        )


def read_json(path: Path, kind: str = "a pool") -> dict[str, Any]:
    """The facts of a folder that should be of a kind; InputError where they cannot be read."""
    try:
        return {**json.loads(path.read_text())}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}): is {path.parent} {kind}?") from error
