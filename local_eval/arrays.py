"""Logits or confidences from anywhere, without any model: read, checked, and judged by the forgetting quality."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kit.errors import InputError, first_line
from local_eval.assess import FEWEST, Assessment, assess_confidences, attack_measures
from local_eval.audit import families
from local_eval.audit.predict import ranking_warning
from local_eval.metric import MetricSpec, checked_samples, forgetting_quality, form_of, logit_scaled_confidence
from local_eval.report.assessment import assessment_facts, assessment_lines, measure_lines
from local_eval.results import Result

_LARGEST_BYTES = 1 << 31  # of confidences: 512 models on 250,000 examples, twice
_LARGEST_LOGITS = 1 << 34
_LARGEST_TABLE = 1 << 24
_PACKED = 100  # times smaller than what it holds no file of measured numbers is: they are noise and hardly compress
_NAMES = {  # what an array may be called in a .npz
    "unlearned": ("unlearned", "unlearned_logits", "u"),
    "retrained": ("retrained", "retrained_logits", "r"),
    "labels": ("labels", "label", "targets", "y"),
}


@dataclass(frozen=True)
class ArrayScore(Result):
    """What `judge` finds. epsilon (n_examples,); assessment: intervals, null and diagnosis, None below eight models;
    measures: U-LiRA, KLOM, true positive rates, and of logits also distances of the outputs; notes: what a reader must
    know, in sentences."""

    name: str
    attacks: str
    n_unlearned: int
    n_retrained: int
    epsilon: np.ndarray
    forgetting_quality: float
    assessment: Assessment | None = None
    measures: Mapping[str, float | None] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def n_models(self) -> int:
        """Of the smaller sample, by which the number of bins is chosen."""
        return min(self.n_unlearned, self.n_retrained)

    @property
    def null(self) -> float | None:
        """The F that retrained models get against each other; None where too few models say nothing."""
        form = self.assessment.forms[self.attacks] if self.assessment else None
        return form.null.value if form and form.null else None

    def records(self) -> list[dict[str, Any]]:
        """One row: numbers of models and examples, forgetting quality with its interval, null, and every measure."""
        form = self.assessment.forms[self.attacks] if self.assessment else None
        return [
            {
                "name": self.name,
                "n_unlearned": self.n_unlearned,
                "n_retrained": self.n_retrained,
                "n_examples": len(self.epsilon),
                "forgetting_quality": self.forgetting_quality,
                "quality_low": form.quality.low if form else None,
                "quality_high": form.quality.high if form else None,
                "null": self.null,
                "mean_epsilon": float(self.epsilon.mean()),
                **self.measures,
            }
        ]

    def headline(self) -> str:
        held = f"{self.n_models} models"
        if self.n_unlearned != self.n_retrained:
            held = f"{self.n_unlearned} unlearned and {self.n_retrained} retrained models"
        return (
            f"forgetting quality {self.forgetting_quality:.6f}, mean epsilon {self.epsilon.mean():.4f} "
            f"({held}, {len(self.epsilon)} examples, {self.attacks} attacks)"
        )

    def sentences(self) -> list[str]:
        found = [self.headline()]
        if self.null:
            found.append(f"retrained models get {self.null:.4f} against each other: a perfect unlearner gets no more")
        return [*found, *([self.assessment.sentence] if self.assessment else []), *self.notes]

    def facts(self) -> dict[str, Any]:
        facts = {
            "epsilon": self.epsilon.tolist(),
            "forgetting_quality": self.forgetting_quality,
            "mean_epsilon": float(self.epsilon.mean()),
            "n_models": self.n_models,
            "n_unlearned": self.n_unlearned,
            "n_retrained": self.n_retrained,
            "n_examples": len(self.epsilon),
            "attacks": self.attacks,
            "notes": list(self.notes),
        }
        if self.assessment:
            facts |= assessment_facts([self.assessment], {}, {}, None)
        return facts | {"measures": {self.name: dict(self.measures)} if self.measures else {}}

    def lines(self) -> list[str]:
        """The same for the terminal."""
        lines = [self.headline()]
        if self.assessment:
            lines += ["", *assessment_lines(self.assessment)]
        if self.measures:
            lines += ["", *measure_lines({self.name: self.measures})]
        return [*lines, *self.notes]


def judge(
    unlearned: Any,
    retrained: Any,
    labels: Any = None,
    *,
    name: str = "unlearned",
    spec: MetricSpec | None = None,
    attacks: str = "grid",
    brief: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> ArrayScore:
    """Forgetting quality, null, intervals, diagnosis and other measures from arrays alone.

    unlearned, retrained: logits (n_models, n_examples, n_classes) of the forget set, with its labels (n_examples,); or,
    without labels, confidences (n_models, n_examples): the log-odds log(p / (1 - p)) of the label's probability. brief:
    only the first of these. Raises InputError for arrays that are none of these, probabilities among them.
    """
    spec, measures, attack = spec or MetricSpec(), {}, form_of(attacks)
    logits = None
    if labels is not None:
        logits, labels = checked_logits(unlearned, retrained, labels)
        confidences = tuple(logit_scaled_confidence(array, labels) for array in logits)
    else:
        confidences = checked_confidences(unlearned, retrained)
    u, r = checked_samples(*confidences)
    if np.array_equal(u, r):
        raise InputError("unlearned and retrained models have the same numbers: give the unlearned ones")
    n_models, assessment = min(len(u), len(r)), None
    epsilon = attack(u[:n_models], r[:n_models], spec).epsilon
    if not brief and n_models >= FEWEST and len(epsilon) > 1:
        options = {"attacks": attacks, "seed": seed, "progress": progress}
        (assessment,), _ = assess_confidences({name: u}, r, spec=spec, **options)
    if not brief and n_models >= 4:
        measures = attack_measures(u, r, seed)
        if logits is not None:
            pair = [array[:n_models] for array in logits]
            measures |= {
                "activation distance": families.activation_distance(*pair),
                "JS divergence": families.js_divergence(*pair),
                "KL divergence": families.kl_divergence(*pair),
            }
    quality = forgetting_quality(epsilon, n_models, spec)
    return ArrayScore(
        name, attacks, len(u), len(r), epsilon, quality, assessment, measures, _notes(u, r, logits is not None)
    )


def _notes(unlearned: np.ndarray, retrained: np.ndarray, of_logits: bool) -> list[str]:
    n_models, n_examples = min(len(unlearned), len(retrained)), unlearned.shape[1]
    notes = []
    if len(unlearned) != len(retrained):
        also = ", and the distances pair the same" if of_logits else ""
        notes.append(
            f"{len(unlearned)} unlearned models against {len(retrained)} retrained ones: the score compares the first "
            f"{n_models} of each{also}; the null and the other measures use all"
        )
    if n_models > n_examples:
        notes.append(
            f"more models ({n_models}) than examples ({n_examples}): the order expected is (n_models, n_examples)"
        )
    within = [name for name, a in (("unlearned", unlearned), ("retrained", retrained)) if _within_one(a)]
    if len(within) == 1 and not of_logits:
        notes.append(
            f"the {within[0]} confidences all lie within 0 and 1, as probabilities do, the others do not: a confidence "
            "is the log-odds of the label, in both"
        )
    return notes + ([warning] if (warning := ranking_warning(n_models)) else [])


def _within_one(confidences: np.ndarray) -> bool:
    """Do they look like probabilities?"""
    fractions = confidences.dtype.kind == "f" and confidences.size > 1
    return bool(fractions and confidences.min() >= 0 and confidences.max() <= 1)


def checked_confidences(unlearned: Any, retrained: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both samples; InputError where they look like something else than log-odds of (n_models, n_examples)."""
    u, r = np.asarray(unlearned), np.asarray(retrained)
    if u.ndim == r.ndim == 3:
        raise InputError(f"confidences have shape {u.shape}: of logits give the labels too (--logits, --labels)")
    if u.ndim == r.ndim == 2 and u.shape[1] != r.shape[1] and u.shape[0] == r.shape[0]:
        raise InputError(
            f"unlearned confidences are {u.shape}, retrained ones {r.shape}: expected (n_models, n_examples) with the "
            "same examples: these look transposed"
        )
    if _within_one(u) and _within_one(r):
        raise InputError(
            "all confidences lie within 0 and 1, as probabilities do: a confidence is the log-odds of the label: "
            "np.log(p) - np.log1p(-p)"
        )
    return u, r


def checked_logits(unlearned: Any, retrained: Any, labels: Any) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """(unlearned, retrained) logits and labels; InputError, with the numbers of models, examples and classes found,
    where they do not fit together."""
    u, r, labels = np.asarray(unlearned), np.asarray(retrained), np.asarray(labels)
    for name, sample in (("unlearned", u), ("retrained", r)):
        if sample.ndim != 3 or sample.dtype.kind not in "fiu":
            raise InputError(
                f"{name} logits are {sample.dtype} {sample.shape}: expected numbers (n_models, n_examples, n_classes)"
            )
        if sample.size and sample.min() >= 0 and np.allclose(sample[0].sum(axis=-1), 1, atol=1e-3):
            raise InputError(f"{name} logits are probabilities, which sum to 1: give the logits, or np.log of these")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"labels are {labels.dtype} {labels.shape}: expected integers (n_examples,)")
    found = [f"{a.shape[0]} models, {a.shape[1]} examples, {a.shape[2]} classes" for a in (u, r)]
    shown = f"unlearned logits have {found[0]}; retrained ones {found[1]}; labels {len(labels)} examples"
    if u.shape[1:] != r.shape[1:] or u.shape[1] != len(labels):
        swapped = len(labels) in (u.shape[0], u.shape[2]) and u.shape[1] != len(labels)
        order = "these look transposed: expected (n_models, n_examples, n_classes)"
        hint = order if swapped else "all must be of the same forget set"
        raise InputError(f"{shown}: {hint}")
    return (u, r), labels


def read_confidences(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The arrays unlearned_confidence and retrained_confidence of a .npz."""
    arrays = _read_npz(path, _LARGEST_BYTES)
    names = ("unlearned_confidence", "retrained_confidence")
    if missing := [name for name in names if name not in arrays]:
        raise InputError(f"{path}: has no array {missing[0]}: it holds {', '.join(arrays)}{_of_logits(arrays)}")
    return tuple(arrays[name] for name in names)


def _of_logits(arrays: Mapping[str, np.ndarray]) -> str:
    return " (logits are read with --logits)" if any(array.ndim == 3 for array in arrays.values()) else ""


def read_logits(paths: Sequence[Path], labels: Path | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unlearned and retrained logits and labels, of one .npz (unlearned, retrained, labels) or of two .npy files and
    one of labels. InputError where they are not there."""
    if len(paths) > 2:
        raise InputError(f"--logits: got {len(paths)} files: give one .npz, or two .npy: unlearned and retrained")
    if len(paths) == 2:
        if labels is None:
            raise InputError("--logits: give the labels of the forget set too: --labels FILE.npy")
        return _read_npy(paths[0]), _read_npy(paths[1]), _read_npy(labels)
    (path,) = paths
    if path.suffix == ".npy":
        raise InputError(f"--logits {path}: give two .npy files, unlearned and retrained, or one .npz with both")
    arrays = _read_npz(path, _LARGEST_LOGITS)
    found = {}
    for what, names in _NAMES.items():
        if what == "labels" and labels is not None:
            found[what] = _read_npy(labels)
            continue
        name = next((name for name in names if name in arrays), None)
        if name is None:
            raise InputError(f"{path}: has no array {what}: it holds {', '.join(arrays)}")
        found[what] = arrays[name]
    return found["unlearned"], found["retrained"], found["labels"]


def _read_npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # numpy raises many kinds for a broken file
        raise InputError(f"{path}: is no readable .npy of numbers ({first_line(error)})") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: is an archive of arrays: give it alone to --logits, or .npy files")
    return array


class _BoundedFile(io.FileIO):
    """A file whose table of contents is read only where it is as small as that of a few arrays."""

    def read(self, size: int = -1) -> bytes:
        data = b"" if size > _LARGEST_TABLE else super().read(size if size >= 0 else _LARGEST_TABLE + 1)
        if max(size, len(data)) > _LARGEST_TABLE:
            raise zipfile.BadZipFile(f"more than {_LARGEST_TABLE:,} bytes of names")
        return data


def _read_npz(path: Path, largest: int) -> dict[str, np.ndarray]:
    if path.suffix == ".npy" and path.exists():
        raise InputError(f"{path}: is one array: expected a .npz (np.savez) with both samples by name")
    try:
        with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
            unpacked, packed = sum(info.file_size for info in archive.infolist()), path.stat().st_size
        if unpacked > largest or unpacked > _PACKED * packed:
            raise ValueError(f"{packed:,} bytes that unpack to {unpacked:,}")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # numpy and zipfile raise many kinds for a broken file
        raise InputError(f"{path}: is no readable .npz of arrays ({first_line(error)})") from error
