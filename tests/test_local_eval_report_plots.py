"""One style for every picture: colours told apart by everyone, readable on both papers; SVG that stands in a page."""

import re
import xml.etree.ElementTree as ET
from itertools import combinations

import numpy as np
import pytest

from local_eval.audit import diagnose
from local_eval.audit.simulate import simulated_pools
from local_eval.metric import MetricSpec, best_attack, exact_epsilon
from local_eval.report import plots
from local_eval.report.images import attack_sentence
from local_eval.report.plots.style import DARK, LIGHT, MARKERS, ROLES, new_figure

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
SIGHTS = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)


def linear(colour):
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    t = TO_XYZ @ np.clip(rgb, 0, 1) / [0.95047, 1.0, 1.08883]
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(a, b):
    light, dark = sorted((float(linear(x) @ TO_XYZ[1]) for x in (a, b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_roles_are_told_apart_by_everyone_and_seen_on_the_paper(theme):
    for sight, matrix in SIGHTS.items():
        seen = {role: lab(np.asarray(matrix) @ linear(theme[role])) for role in ROLES}
        for a, b in combinations(ROLES, 2):
            least = 30 if {a, b} == {"unlearned", "retrained"} else 12
            assert np.linalg.norm(seen[a] - seen[b]) > least, (sight, a, b)
    assert all(contrast(theme[role], theme["paper"]) >= 3 for role in ROLES)
    assert contrast(theme["ink"], theme["paper"]) > 12 and contrast(theme["quiet"], theme["paper"]) > 4.5
    assert MARKERS["unlearned"] != MARKERS["retrained"]


def pools(n_models=16, n_examples=30, shift=1.0):
    rng = np.random.default_rng(0)
    return rng.normal(shift, 0.5, (n_models, n_examples)), rng.normal(size=(n_models, n_examples))


def every_picture():
    u, r = pools()
    spec = MetricSpec()
    epsilon, null = exact_epsilon(u, r).epsilon, exact_epsilon(r[:8], r[8:]).epsilon
    marks = [plots.Mark("do nothing", 0.0), plots.Mark("<b> & $x$", 0.05, 0.04, 0.06, "unlearned")]
    parts = dict.fromkeys(("retain", "forget", "test", "forgotten_test"), r[:, 0] % 1)
    deltas = np.array([1e-5, 1e-2, 0.5])
    return {
        "ruler": plots.ruler(marks, 0.17),
        "histogram": plots.epsilon_histogram(epsilon, null, spec, 16),
        "histogram at 512": plots.epsilon_histogram(epsilon, null, spec, 512),
        "sorted": plots.epsilon_sorted(epsilon, epsilon / 2, null, spec),
        "all capped": plots.epsilon_sorted(np.full(30, 50.0), np.zeros(30), null, spec),
        "faults": plots.faults(diagnose(u, r)),
        "copies": plots.faults(diagnose(np.repeat(u[:1], 16, axis=0), r)),
        "confidences": plots.confidences(u[:, 0], r[:, 0], best_attack(u[:, 0], r[:, 0])),
        "one value": plots.confidences(np.ones(4), np.ones(4), None),
        "tradeoff": plots.tradeoff(np.linspace(1, 0, 17)[:, None] * np.ones((1, 5)), np.ones((9, 5))),
        "delta": plots.epsilon_delta(deltas, np.ones((3, 30)), np.zeros((3, 30)), 4.0),
        "accuracies": plots.accuracies(parts, parts, dict.fromkeys(parts, 0.5)),
        "classes": plots.class_accuracies(["a" * 40, "$b$"], u[:, :2] % 1, r[:, :2] % 1, "by class"),
        "seconds": plots.checkpoint_seconds(np.ones(5), 2.0, 0.2),
        "timeline": plots.timeline(np.ones(5), 512, 600.0, [0.5], 60.0),
        "score seconds": plots.score_seconds(marks, [0.1, 0.1], 0.17, 2.0),
        "agreement": plots.agreement({"a": 0.5, "b": float("nan")}),
        "strips": plots.strips(
            {"m " + "x" * 40: u[:, 0], "retrained": r[:, 0]},
            dict.fromkeys(("m " + "x" * 40, "retrained"), ("unlearned", "D")),
            {"retrained": "ε 1"},
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(every_picture()))
def test_a_picture_stands_inside_a_page(name):
    text = plots.svg(every_picture()[name], f'the {name} of "this" <page>')
    root = ET.fromstring(text)
    assert root.get("role") == "img" and root.get("aria-label") == f'the {name} of "this" <page>'
    assert root.get("width") is None and root.get("viewBox")
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    named = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert set(named) <= set(ids)
    assert not re.search(r"https?://(?!www\.w3\.org)", text), "no address but the names of the formats"
    assert "<style" not in text and "<script" not in text
    assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r'(id|href)="[^"]*"|url\([^)]*\)', "", text)), "a colour of no role"
    assert "nan" not in re.sub(r'aria-label="[^"]*"', "", text)
    assert len(text) < 300_000


def test_methods_beside_each_other_are_told_apart():
    styles = [plots.method_style(place) for place in range(8)]
    assert len(set(styles)) == 8
    assert len({role for role, _ in styles[:4]}) == 4  # the first four by their colour alone
    assert all(role != "retrained" for role, _ in styles)
    marks = [plots.Mark(str(place), 0.1 * place, None, None, *style) for place, style in enumerate(styles)]
    pictures = (plots.ruler(marks, 1.0), plots.score_seconds(marks, range(8), 1.0, None))
    for figure in pictures:
        drawn = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}
        assert {(plots.colour(role), marker) for role, marker in styles} <= drawn


def test_texts_are_shown_as_they_are():
    text = plots.svg(every_picture()["ruler"], "ruler")
    assert "&lt;b&gt; &amp; $x$" in text


def test_the_same_figure_gives_the_same_bytes_and_two_figures_share_no_id():
    first, again = (plots.svg(every_picture()["faults"], "x") for _ in range(2))
    assert first == again
    other = plots.svg(every_picture()["copies"], "x")
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (first, other)]
    assert not ids[0] & ids[1]


def test_the_style_ends_with_the_picture():
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.ruler([plots.Mark("a", 1.0)])
    assert dict(matplotlib.rcParams) == before


def test_the_themes_define_every_colour():
    css = plots.theme_css()
    figure, axis = new_figure(1.0)
    for role in LIGHT:
        axis.plot([0, 1], color=plots.colour(role))
        assert css.count(f"--{role}:") == 2
    assert set(re.findall(r"var\(--(\w+)\)", plots.svg(figure, "all"))) == {*LIGHT, "font"}


def bars(figure):
    return [patch.get_height() for patch in figure.axes[0].patches if patch.get_width() == pytest.approx(0.4)]


def test_the_histogram_has_the_bins_of_the_score():
    spec = MetricSpec()
    epsilon = np.array([0.0, 0.49, 0.5, 1.9, 50.0, 4.999, 5.0, 7.0])
    shares = bars(plots.epsilon_histogram(epsilon, epsilon, spec, 16))
    n_bins = spec.n_bins(16)
    assert len(shares) == 2 * (n_bins + 1)
    expected = np.zeros(n_bins + 1)
    for value in epsilon:
        expected[min(int(value / 0.5), n_bins)] += 1 / len(epsilon)
    np.testing.assert_allclose(shares[: n_bins + 1], expected)


def test_a_card_tells_what_the_attack_that_it_draws_gets():
    u, r = (column[:, 0] for column in simulated_pools(32, 1, np.random.default_rng(0), shift=1.0))
    attack = best_attack(u, r)
    said = attack_sentence(attack, 32, 32)
    inside = [int(((x >= attack.lo) & (x <= attack.hi)).sum()) for x in (u, r)]
    hits, wrong = inside if attack.inside_is_unlearned else inside[::-1]
    assert f": {hits} of 32 " in said and f" and {wrong} of 32 " in said
    assert said.endswith(f"models (epsilon {attack.epsilon:.2f}).")
