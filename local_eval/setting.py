"""A setting: data, forget policy, architecture, recipe, seeds. Its hash names everything that is cached for it."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

import data_stubs
from data_stubs import splits as saved
from data_stubs.splits import Part, Splits
from kit.competition import BATCH_SIZE, ExampleDataset, Loaders, load_state, make_loaders
from kit.errors import InputError
from kit.ledger import write_atomically
from kit.seeds import checkpoint_seed
from kit.tools.own import is_file_spec, read_spec
from local_eval.models import ARCHITECTURES, build, check_name, check_net
from local_eval.recipes import Recipe, get_recipe

_BY_FILE = ("architecture", "recipe")  # what may be a function in a user's file
LATER = ("lr", "batch_size")  # fields that settings of before lack; not part of a name where they are None
# What --like sets unless told otherwise: the competition's training recipe, forget policy and steps an epoch on real
# subjects, with labels that no net fits completely, as the competition's, or with clean ones.
_COMPETITION = {
    "source": "gtsrb:super:noise=0.04",
    "forget": "competition",
    "architecture": "resnet18_narrow",
    "recipe": "competition",
    "passes": 2,
}
LIKE = {"competition": _COMPETITION, "competition-clean": _COMPETITION | {"source": "gtsrb:super"}}
_FORMAT = 1  # part of the hash: raised when a change makes models trained before incomparable


@dataclass(frozen=True)
class Setting:
    """What two pools must share to be compared.

    source, n_train, forget: as data_stubs.load takes them; data_seed draws the forget set. recipe, epochs, lr,
    batch_size (None: the recipe's own) and train_seed train the original and the retrained models. n_retain_sample: how
    many retain examples each model is evaluated on. passes: how often a method's loaders hold each example, so that an
    epoch of a small data set has as many steps as one of the competition's; originals and retrained models are trained
    as ever.
    """

    source: str
    forget: str = "random:500"
    n_train: int | None = None
    data_seed: int = 0
    architecture: str = "smallconv"
    recipe: str = "fast"
    epochs: float | None = None
    train_seed: int = 0
    n_retain_sample: int = 2000
    passes: int = 1
    lr: float | None = None
    batch_size: int | None = None

    def __post_init__(self):
        for what in _BY_FILE:
            if is_file_spec(spec := getattr(self, what)):
                object.__setattr__(self, what, str(read_spec(spec, f"--{what}")))
        check_name("architecture", self.architecture, ARCHITECTURES)
        if self.epochs is None and is_file_spec(self.recipe):  # kept: the file may be gone when they are asked for
            object.__setattr__(self, "epochs", get_recipe(self.recipe).epochs)
        if self.epochs is not None and math.isnan(self.epochs):
            raise InputError(
                f"--recipe {self.recipe}: has no default for epochs: give --epochs N, or one in its signature"
            )
        if not is_file_spec(self.recipe):
            get_recipe(self.recipe)
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise InputError(f"--epochs {self.epochs}: must be positive")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise InputError(f"--lr {self.lr}: must be positive")
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"--batch-size {self.batch_size}: must be 1 or more")
        if self.passes < 1:
            raise InputError(f"passes is {self.passes}: 1 or more")

    def hash(self, splits: Splits) -> str:
        """Twelve hex digits over every field and the data itself; the data's path does not count."""
        given = {name: value for name, value in asdict(self).items() if value is not None or name not in LATER}
        facts = {
            **given,
            **self.sources(),
            "epochs": int(self.n_epochs) if self.n_epochs == int(self.n_epochs) else self.n_epochs,  # 1.0 is 1
            "source": None,
            "forget": data_stubs.forget_identity(self.forget),
            "data": saved.fingerprint(splits),
            "format": _FORMAT,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

    def sources(self) -> dict[str, str]:
        """Function and text of the user's files that this setting builds on: field -> what names them."""
        specs = {what: getattr(self, what) for what in _BY_FILE}
        return {what: read_spec(spec, f"--{what}").identity for what, spec in specs.items() if is_file_spec(spec)}

    def training(self) -> Recipe:
        """The recipe with this setting's learning rate and batch size."""
        return get_recipe(self.recipe, self.lr, self.batch_size)

    @property
    def n_epochs(self) -> float:
        return self.epochs if self.epochs is not None else get_recipe(self.recipe).epochs


@dataclass(frozen=True)
class Workspace:
    """A setting with its data, in the folder that keeps its models and pools."""

    setting: Setting
    splits: Splits
    folder: Path
    sources: Mapping[str, str] = field(default_factory=dict)  # of the user's files, when the folder was made

    @property
    def name(self) -> str:
        """The setting's hash."""
        return self.folder.name

    @property
    def original_path(self) -> Path:
        return self.folder / "original_model.pth"

    def evaluated(self) -> dict[str, Part]:
        """The parts whose logits a pool holds: the forget set, a fixed sample of the retain set, the test set."""
        n_sample = min(self.setting.n_retain_sample, len(self.splits.retain))
        generator = torch.Generator().manual_seed(checkpoint_seed(self.setting.data_seed, -2))
        rows = torch.randperm(len(self.splits.retain), generator=generator)[:n_sample].sort().values.numpy()
        return {"forget": self.splits.forget, "retain": self.splits.retain.take(rows), "test": self.splits.test}

    def loaders(
        self, loader: type[DataLoader], batch_size: int = BATCH_SIZE, device: torch.device | str = "cpu"
    ) -> Loaders:
        """What an unlearning function receives, each example `passes` times."""
        parts = (self.splits.retain, self.splits.forget, self.splits.validation)
        if self.setting.passes > 1:
            parts = (part.take(np.tile(np.arange(len(part)), self.setting.passes)) for part in parts)
        return make_loaders(*(as_dataset(part).to(device) for part in parts), batch_size, loader)

    def net(self, seed: int | None = None) -> nn.Module:
        """A freshly initialised net; InputError where its file is gone or was changed."""
        self._check_source("architecture")
        return build(self.setting.architecture, self.splits.n_classes, seed)

    def recipe(self) -> Recipe:
        """How models are trained; InputError where its file is gone or was changed."""
        self._check_source("recipe")
        return self.setting.training()

    def _check_source(self, what: str) -> None:
        if (before := self.sources.get(what)) is None:
            return
        spec = read_spec(getattr(self.setting, what), f"--{what}")
        if not spec.path.exists():
            raise InputError(f"{spec.path}: is gone, and with it the {what} of {self.folder}: bring it back as it was")
        if spec.identity != before:
            raise InputError(
                f"{spec.path}: was changed since the models of {self.folder} were made: undo that, or begin a setting "
                f"with the new one: --{what} {spec}"
            )

    def class_counts(self) -> torch.Tensor:
        """Occurrences of each class in the whole training set, float32 (n_classes,)."""
        labels = torch.as_tensor(self.splits.train.labels)
        return torch.bincount(labels, minlength=self.splits.n_classes).float()

    def original(self) -> nn.Module:
        """The original model; InputError if it has not been trained."""
        if not self.original_path.exists():
            raise InputError(f"{self.original_path}: no original model yet: run the train step of this setting first")
        return load_state(self.original_path, self.net()).eval()


def as_dataset(part: Part) -> ExampleDataset:
    """A part as the data set that the loaders read."""
    return ExampleDataset(
        torch.tensor(part.images), part.labels.tolist(), image_id=part.ids.tolist(), person_id=part.groups.tolist()
    )


def open_workspace(setting: Setting, root: Path, **data_options: Any) -> Workspace:
    """Load the setting's data and make its folder `root/<hash>`; nothing is trained.

    data_options: data_root, cache_dir and progress of data_stubs.load: where the data is, not what it is.
    """
    return keep_workspace(setting, splits_of(setting, **data_options), root)


def splits_of(setting: Setting, **data_options: Any) -> Splits:
    """The setting's data, loaded; options as `open_workspace` takes them."""
    options = {"forget": setting.forget, "n_train": setting.n_train, "seed": setting.data_seed}
    return data_stubs.load(setting.source, **options, **data_options)


def keep_workspace(setting: Setting, splits: Splits, root: Path) -> Workspace:
    """The workspace of data that is loaded already."""
    folder = Path(root) / setting.hash(splits)
    if not folder.exists():
        setting.training()
        with torch.random.fork_rng(devices=[]):
            net = build(setting.architecture, splits.n_classes)
        check_net(net, splits.test.images.shape[1:], splits.n_classes, f"--architecture {setting.architecture}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sources = setting.sources()
        facts = asdict(setting) | ({"sources": sources} if sources else {})
        path, text = folder / "setting.json", f"{json.dumps(facts, indent=2)}\n"
        if not path.exists() or path.read_text() != text:  # others may be reading it
            write_atomically(path, text.encode())
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}): choose another --work-dir") from error
    try:
        saved.load(folder / "data", checked=True)
    except InputError:  # not there yet, or damaged since
        saved.save(splits, folder / "data")
    return Workspace(setting, splits, folder, sources)


def _names() -> list[str]:
    return [item.name for item in fields(Setting)]


def reopen(folder: Path, *, checked: bool = False) -> Workspace:
    """The workspace of a folder made by `open_workspace`, data memory-mapped: what processes start from.

    checked: read all of the data and compare it with its fingerprint; InputError where it is damaged.
    """
    folder = Path(folder)
    try:
        facts = json.loads((folder / "setting.json").read_text())
        setting = Setting(**{name: facts[name] for name in _names() if name in facts or name not in LATER})
    except OSError as error:
        raise InputError(f"{folder}: is no folder of a setting: give one that run or train made") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder / 'setting.json'}: cannot be read ({error}): give a folder that run or train made"
        ) from error
    return Workspace(setting, saved.load(folder / "data", checked=checked), folder, facts.get("sources", {}))
