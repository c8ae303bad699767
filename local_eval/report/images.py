"""Forgotten images beside what gives them away, and images under their class-activation maps, ready for a template."""

from typing import Any

import numpy as np
import torch

from data_stubs.splits import Part, Splits
from kit.errors import InputError
from local_eval.assess import Assessment
from local_eval.evaluate import Samples
from local_eval.metric import MetricSpec, WindowAttack, best_attack
from local_eval.report import plots
from local_eval.report.html import picture, png_uri
from local_eval.report.saliency import Maps, Nets, class_activation

N_SHOWN = 4
_MAP_SIDE = 96  # pixels of a drawn map


def extremes(assessment: Assessment, n_shown: int = N_SHOWN) -> tuple[list[int], list[int]]:
    """Rows of the worst and of the best forgotten images; of equal epsilons the surer, then the further shifted one is
    worse."""
    d = assessment.diagnosis
    order = np.lexsort((np.abs(d.shift), assessment.lower_bounds.epsilon, d.epsilon))
    n = min(n_shown, len(order) // 2 or 1)
    return order[::-1][:n].tolist(), order[:n].tolist()


def card(splits: Splits, samples: Samples, name: str, assessment: Assessment, row: int, spec: MetricSpec) -> dict:
    """One forgotten image with its two distributions and the attack that separates them."""
    unlearned, retrained = samples.methods[name].confidence[:, row], samples.retrained.confidence[:, row]
    attack = best_attack(unlearned, retrained, spec)
    epsilon, bound = assessment.diagnosis.epsilon[row], assessment.lower_bounds.epsilon[row]
    what = _class_name(splits, int(splits.forget.labels[row]))
    caption = attack_sentence(attack, len(unlearned), len(retrained), row in assessment.too_tight)
    return {
        "image": png_uri(splits.forget.images[row]),
        "alt": f"forgotten image {splits.forget.ids[row]}, {what}",
        "name": what,
        "lines": [f"epsilon {epsilon:.2f}", f"at least {bound:.2f}", str(splits.forget.ids[row])],
        "picture": picture(
            plots.confidences(unlearned, retrained, attack),
            f"Histograms of the confidences of {len(unlearned)} unlearned and {len(retrained)} retrained models. "
            f"{caption}",
            caption,
        ),
    }


def attack_sentence(attack: WindowAttack | None, n_unlearned: int, n_retrained: int, too_tight: bool = False) -> str:
    """What the best attack on an image predicts, how often it is right, and its epsilon, which is above the score's
    where that is of the grid."""
    if attack is None:
        return "Every attack has one error rate of exactly 0 and is discarded: epsilon counts as the largest."
    inside, other = ("unlearned", "retrained") if attack.inside_is_unlearned else ("retrained", "unlearned")
    n_inside, n_other = (n_unlearned, n_retrained) if attack.inside_is_unlearned else (n_retrained, n_unlearned)
    if np.isinf(attack.lo) and np.isinf(attack.hi):
        return "No threshold and no window tells them apart."
    if np.isinf(attack.lo):
        where = f"up to {attack.hi:.2f}"
    elif np.isinf(attack.hi):
        where = f"from {attack.lo:.2f} on"
    else:
        where = f"from {attack.lo:.2f} to {attack.hi:.2f}"
    hits, wrong = round((1 - attack.fnr) * n_inside), round(attack.fpr * n_other)
    tight = " One spreads a hundred times as wide as the other: epsilon is the largest at once." if too_tight else ""
    counts = f"{hits} of {n_inside} {inside} and {wrong} of {n_other} {other} models"
    return f"“{inside}” {where}: {counts} (epsilon {attack.epsilon:.2f}).{tight}"


def saliency_rows(part: Part, splits: Splits, rows: list[int], nets: Nets) -> list[dict]:
    """For each of these rows of a part: the image, then its map in every model."""
    images = torch.tensor(part.images[rows]).float()
    labels = torch.tensor(part.labels[rows])
    found = {name: class_activation(net, images, labels) for name, net in nets.nets.items()}
    lines = []
    for place, row in enumerate(rows):
        what = _class_name(splits, int(part.labels[row]))
        cells = [{"image": png_uri(part.images[row]), "alt": f"image, {what}", "label": what, "pixels": True}]
        for name, maps in found.items():
            label = f"{name} {maps.probability[place]:.0%}"
            alt = f"where the {name} model sees {what}: {_centre(maps.maps[place])}"
            cells.append(
                {"image": png_uri(_overlay(part.images[row], maps, place)), "alt": alt, "label": label, "pixels": False}
            )
        lines.append({"cells": cells})
    return lines


def maps_or_reason(splits: Splits, groups: dict[str, tuple[Part, list[int]]], nets: Nets) -> Any:
    """(heading, rows) of each group of images for the template, or the sentence that says why there are none."""
    try:
        return [(heading, saliency_rows(part, splits, rows, nets)) for heading, (part, rows) in groups.items()]
    except InputError as error:
        return f"No maps: {error}."


def _overlay(image: np.ndarray, maps: Maps, place: int) -> np.ndarray:
    """The image in grey under the map in colours of even steps, uint8 (side, side, 3)."""
    from matplotlib import colormaps

    grey = torch.tensor(image.mean(axis=0) / 255)[None, None].float()
    grey = torch.nn.functional.interpolate(grey, (_MAP_SIDE, _MAP_SIDE), mode="nearest")[0, 0].numpy()
    strength = torch.tensor(maps.maps[place])[None, None]
    strength = torch.nn.functional.interpolate(strength, (_MAP_SIDE, _MAP_SIDE), mode="bilinear")[0, 0].numpy()
    colours = colormaps["inferno"](strength)[..., :3]
    return (255 * (0.45 * grey[..., None] + 0.55 * colours)).round().astype(np.uint8)


def _centre(strength: np.ndarray) -> str:
    """In words, where most of a map lies."""
    total = strength.sum()
    if total == 0:
        return "nowhere"
    rows, columns = (np.arange(n) for n in strength.shape)
    y = (strength.sum(axis=1) @ rows) / total / max(1, len(rows) - 1)
    x = (strength.sum(axis=0) @ columns) / total / max(1, len(columns) - 1)
    down = "top" if y < 0.42 else "bottom" if y > 0.58 else ""
    across = "left" if x < 0.42 else "right" if x > 0.58 else ""
    return " ".join(filter(None, (down, across))) or "the middle"


def _class_name(splits: Splits, label: int) -> str:
    return str(splits.class_names[label])
