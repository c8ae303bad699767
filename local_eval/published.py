"""A setting's retrained models in one small file: made once, by whoever has the hours, and used by everyone.

It holds what scoring needs and nothing of the data: the setting, the data's fingerprint and labels, the retrained
models' logits, and the original model with its own, unless it is left out: then each machine trains it for itself, and
no weights travel. Logits of retrained models are kept as float16, which moves a confidence by about a hundredth of its
spread over models.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import data_stubs
from data_stubs.splits import fingerprint
from kit.competition import load_tensors, state_difference
from kit.errors import InputError
from kit.ledger import write_atomically
from local_eval.pool import EVALUATED
from local_eval.retrained import original_pool, retrained_pool
from local_eval.setting import LATER, Setting, Workspace, keep_workspace

# Where this project keeps those it publishes, named by the setting's hash.
FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "pools"
_FORMAT = 1
_MEMBERS = ("facts", "seconds", *(f"{what}_{part}" for part in EVALUATED for what in ("labels", "retrained")))
_ORIGINAL = ("original_model", *(f"original_{part}" for part in EVALUATED))  # all of them or none
_TEXTS = ("source", "forget", "architecture", "recipe")  # fields of a setting; all others are numbers or None
_LARGEST_BYTES = 1 << 31


def export_pool(workspace: Workspace, path: Path, n_models: int | None = None, *, original: bool = True) -> int:
    """Write the first `n_models` retrained models (all without a gap) and the original; gives their number.

    original: False leaves the original model out.
    """
    pool = retrained_pool(workspace)
    if path.is_dir():
        raise InputError(f"{path}: is a folder: name the file, such as {path / 'retrained.npz'}")
    if n_models is not None and n_models < 2:
        raise InputError(f"--n-models {n_models}: export needs 2 retrained models or more")
    n_models = len(pool) if n_models is None else n_models
    if n_models < 2:
        raise InputError(f"{pool.folder}: has {len(pool)} retrained models: export needs 2 or more")
    retrained = pool.read(n_models)
    facts = {
        "format": _FORMAT,
        "name": workspace.name,
        "setting": asdict(workspace.setting),
        **({"sources": workspace.sources} if workspace.sources else {}),
        "fingerprint": fingerprint(workspace.splits),
    }
    arrays: dict[str, Any] = {"seconds": retrained["seconds"]}
    for name, part in workspace.evaluated().items():
        arrays[f"labels_{name}"] = part.labels
        arrays[f"retrained_{name}"] = _as_float16(retrained[name])
    if original:
        kept = original_pool(workspace).read(1)
        facts["original_seconds"] = float(kept["seconds"][0])
        arrays["original_model"] = np.frombuffer(workspace.original_path.read_bytes(), dtype=np.uint8)
        arrays |= {f"original_{name}": kept[name][0] for name in EVALUATED}
    arrays["facts"] = json.dumps(facts)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
    return n_models


def import_pool(
    path: Path, root: Path, *, architecture: str | None = None, **data_options: Any
) -> tuple[Workspace, int]:
    """The workspace of a published file below `root`, and the number of its retrained models.

    architecture: the user's `file.py:function` where the file's own net lies elsewhere here. data_options: data_root,
    cache_dir and progress of data_stubs.load: the data comes from where the user has it, and must be the same. Raises
    InputError, in one line, where it is not, or the file is damaged.
    """
    arrays = _read(path)
    facts = _facts(path, arrays)
    setting = Setting(**facts["setting"] | ({"architecture": architecture} if architecture else {}))
    for what, found in setting.sources().items():
        if found != facts.get("sources", {}).get(what):
            raise InputError(f"{path}: was made with another text of {getattr(setting, what)}: bring that {what} back")
    options = {"forget": setting.forget, "n_train": setting.n_train, "seed": setting.data_seed}
    splits = data_stubs.load(setting.source, **options, **data_options)
    if (found := fingerprint(splits)) != facts["fingerprint"]:
        held = {"forget": splits.forget, "test": splits.test}
        same = all(np.array_equal(arrays[f"labels_{name}"], part.labels) for name, part in held.items())
        what = "images" if same else "labels or another choice of examples"
        raise InputError(
            f"{path}: was made with other {what} of {setting.source} (fingerprint {facts['fingerprint']}, here "
            f"{found}): give the same data, or train the retrained models here: local_eval retrain"
        )
    _check(path, arrays, Workspace(setting, splits, Path(root) / setting.hash(splits)))
    workspace = keep_workspace(setting, splits, root)
    return workspace, _write(path, arrays, workspace)


def use_published(workspace: Workspace, folder: Path = FOLDER) -> int:
    """Fill the workspace from the file published for its setting and data; the number of its retrained models, 0 where
    there is no such file."""
    path = folder / f"{workspace.name}.npz"
    if not path.exists():
        return 0
    arrays = _read(path)
    _check(path, arrays, workspace)
    return _write(path, arrays, workspace)


def _check(path: Path, arrays: Mapping[str, np.ndarray], workspace: Workspace) -> None:
    """InputError where the file is damaged or of another setting."""
    facts, parts = _facts(path, arrays), workspace.evaluated()
    if facts["name"] != workspace.name:
        raise InputError(
            f"{path}: is of setting {facts['name']}, this one is {workspace.name}: use the file of its own"
        )
    seconds = arrays["seconds"]
    if seconds.ndim != 1 or seconds.dtype.kind != "f" or not np.isfinite(seconds).all():
        raise InputError(f"{path}: seconds are {seconds}: expected finite seconds: copy the file again")
    for name, part in parts.items():
        if not np.array_equal(arrays[f"labels_{name}"], part.labels):
            raise InputError(f"{path}: has other labels of the {name} part than the data: copy the file again")
        shape = (len(part), workspace.splits.n_classes)
        held = {"retrained": (len(seconds), *shape)} | ({"original": shape} if "original_model" in arrays else {})
        for what, wanted in held.items():
            logits = arrays[f"{what}_{name}"]
            if logits.shape != wanted or logits.dtype.kind != "f" or not np.isfinite(logits).all():
                found = f"{logits.dtype} {logits.shape}"
                raise InputError(f"{path}: {what}_{name} is {found}: expected {wanted}, finite: copy the file again")
    if "original_model" in arrays:
        _check_weights(path, arrays["original_model"].tobytes(), workspace.net())


def _write(path: Path, arrays: Mapping[str, np.ndarray], workspace: Workspace) -> int:
    """Write what the workspace lacks; the number of retrained models."""
    parts, n_models = workspace.evaluated(), len(arrays["seconds"])
    if "original_model" in arrays and not workspace.original_path.exists():
        write_atomically(workspace.original_path, arrays["original_model"].tobytes())
        logits = {name: arrays[f"original_{name}"] for name in parts}
        original_pool(workspace).add(0, logits, _facts(path, arrays)["original_seconds"])
    retrained = retrained_pool(workspace)
    for index in retrained.missing(n_models):
        logits = {name: arrays[f"retrained_{name}"][index].astype(np.float32) for name in parts}
        retrained.add(index, logits, float(arrays["seconds"][index]), published=path.name)
    return n_models


def _check_weights(path: Path, weights: bytes, net: nn.Module) -> None:
    try:
        difference = state_difference(load_tensors(io.BytesIO(weights)), net.state_dict())
    except Exception as error:  # torch raises many kinds for a broken file
        difference = (str(error).strip() or type(error).__name__).splitlines()[0]
    if difference:
        raise InputError(
            f"{path}: original_model does not fit {type(net).__name__} ({difference}): copy the file again"
        )


def _as_float16(logits: np.ndarray) -> np.ndarray:
    """Without their mean over the classes, which changes no probability and would cost digits."""
    halved = (logits - logits.mean(axis=-1, keepdims=True)).astype(np.float16)
    if not np.isfinite(halved).all():
        raise InputError("retrained models have logits beyond float16's range: they cannot be published")
    return halved


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as file:
            if sum(info.file_size for info in file.infolist()) > _LARGEST_BYTES:
                raise ValueError("it unpacks to gigabytes")
        with np.load(path, allow_pickle=False) as file:
            members = _MEMBERS + (_ORIGINAL if any(name in file for name in _ORIGINAL) else ())
            if missing := [name for name in members if name not in file]:
                raise InputError(f"{path}: has no member {missing[0]}: it is no published pool, or is damaged")
            return {name: file[name] for name in members}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file: give one that `local_eval pool export` wrote") from None
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}): copy the file again") from error


def _facts(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    try:
        facts = json.loads(str(arrays["facts"]))
        if facts["format"] != _FORMAT:
            raise ValueError(f"format {facts['format']}, this version reads {_FORMAT}")
        known = {field.name for field in fields(Setting)}
        for name, value in facts["setting"].items():
            if isinstance(value, str) != (name in _TEXTS) or not isinstance(value, str | int | float | None):
                raise ValueError(f"setting with {name} {value!r}")
        if strange := (set(facts["setting"]) ^ known) - set(LATER):
            raise ValueError(f"setting with {', '.join(sorted(strange))}")
        if "original_model" in arrays:
            facts["original_seconds"] = float(facts["original_seconds"])
        return facts | {"fingerprint": str(facts["fingerprint"])}
    except (AttributeError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: its facts cannot be read ({error}): export it again") from error
