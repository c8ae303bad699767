"""What a local score means for Kaggle's: the table behind the expected score, correlations, forecast, the record."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from benchmarks.validity import replay as replays
from benchmarks.validity.points import FEW, METHODS, UNSEEN, known_points
from benchmarks.validity.replay import (
    DIRECTIONS,
    STAND_INS,
    correlations,
    lines_of,
    lines_of_forecasts,
    plot,
    replay,
    take_models,
    together,
    unseen,
)
from local_eval.audit import expected, quality_interval
from local_eval.audit.expected import expected_at_512, points_at, resample_expected
from local_eval.audit.simulate import simulated_pools
from local_eval.metric import MetricSpec, grid_epsilon, points
from local_eval.report import verdict
from local_eval.report.kaggle import ATTAINABLE
from local_eval.retrained import fill_retrained, original_pool, retrained_pool
from local_eval.setting import LIKE, Setting, open_workspace
from local_eval.validity import (
    NOT_VALIDATED,
    geometric_mean,
    rank_correlation,
    validation_of,
    validation_together,
)

# -- the score expected at 512 models ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "ratio"), [(0.0, 1.0), (0.3, 0.75), (0.0, 0.55), (0.9, 1.1)])
def test_the_expected_quality_is_that_of_gaussian_models(shift, ratio):
    rng, spec = np.random.default_rng(1), MetricSpec()
    u, r = rng.normal(size=(2, 512, 300))
    simulated = points(grid_epsilon(shift + ratio * u, r, spec).epsilon, 512, spec)
    error = simulated.std() * np.sqrt(1 / len(simulated) + 1 / expected._N_SIMULATED)
    assert abs(points_at(np.array([shift]), np.array([ratio])).mean() - simulated.mean()) < 4 * error + 0.003


def test_the_interval_of_the_expected_quality_covers_it():
    rng, n_models, n_examples = np.random.default_rng(0), 12, 300
    truth = points_at(0.5 + 0.4 * rng.normal(size=20_000), np.exp(-0.4 + 0.2 * rng.normal(size=20_000))).mean()
    pull = rng.normal(size=n_examples) / 2  # all examples of a model move together

    def models():
        noise = rng.normal(size=(n_models, 1)) * pull + rng.normal(size=(n_models, n_examples))
        return noise / np.sqrt(1 + pull**2)

    found = []
    for seed in range(40):
        shift, ratio = 0.5 + 0.4 * rng.normal(size=n_examples), np.exp(-0.4 + 0.2 * rng.normal(size=n_examples))
        unlearned, retrained = shift + ratio * models(), models()
        resamples = resample_expected(unlearned, retrained, n_resamples=20, seed=seed)
        assert resamples.quality == expected_at_512(unlearned, retrained)
        found.append(quality_interval(resamples))
    assert sum(one.low <= truth <= one.high for one in found) >= 34
    assert np.median([one.high / one.low for one in found]) < 5


def test_the_expected_quality_falls_with_shift_and_wrong_spread():
    one = np.ones(1)
    by_shift = [points_at(s * one, one).mean() for s in (0, 0.5, 1, 2, 4, 50)]
    assert by_shift == sorted(by_shift, reverse=True) and by_shift[-1] < 1e-3
    assert points_at(-0.5 * one, one).mean() == points_at(0.5 * one, one).mean()
    assert points_at(0 * one, 0.5 * one).mean() < points_at(0 * one, 0.8 * one).mean() < by_shift[0]
    assert points_at(0 * one, 0 * one).mean() < 1e-3


@pytest.mark.parametrize(
    ("truth", "lowest", "highest"),
    [
        ({}, 0.11, 0.23),  # the exact value is 0.19 to 0.20
        ({"shift": 0.5, "shift_sd": 0.2}, 0.04, 0.11),  # 0.08
        ({"spread": 0.7, "spread_sd": 0.1}, 0.02, 0.05),  # 0.032
        ({"shift": 1.5, "shift_sd": 0.5, "spread": 0.5, "spread_sd": 0.1}, 0.0004, 0.002),  # 0.0008
    ],
)
def test_few_models_are_enough_to_expect_what_512_give(truth, lowest, highest):
    rng = np.random.default_rng(0)
    found = [
        expected_at_512(u[:6], r) for u, r in (simulated_pools(8, 270, rng, common=0.05, **truth) for _ in range(6))
    ]
    assert lowest < np.mean(found) < highest, found


def test_the_bias_and_variance_of_log_spreads_are_those_of_gaussian_samples():
    logs = np.log(np.random.default_rng(0).normal(size=(5, 200_000)).std(axis=0, ddof=1))
    assert logs.mean() == pytest.approx(expected._log_bias(5), abs=0.005)
    assert logs.var() == pytest.approx(expected._log_variance(5), rel=0.02)


# -- correlations ------------------------------------------------------------------------------------------------------


def rows(local, kaggle, **others):
    return {
        str(i): dict.fromkeys(DIRECTIONS, values) | {"kaggle": k}
        for i, (values, k) in enumerate(zip(local, kaggle, strict=True))
    }


def test_correlations_are_scipys_with_the_sign_of_each_measure():
    rng = np.random.default_rng(0)
    local, kaggle = rng.random((2, 16)) + 0.1
    found = correlations(rows(local, kaggle))
    plain = stats.spearmanr(local, kaggle).statistic
    for measure, sign in DIRECTIONS.items():
        if sign:
            assert found[measure]["spearman"] == pytest.approx(sign * plain)
            assert found[measure]["kendall"] == pytest.approx(sign * stats.kendalltau(local, kaggle).statistic)
    near_one = stats.spearmanr(-np.abs(np.log(local)), kaggle).statistic
    assert found["spread"]["spearman"] == pytest.approx(near_one)
    low, high = found["score"]["interval"]
    assert -1 <= low < plain < high <= 1


def test_the_known_points_are_the_sweep_and_the_methods_that_exist():
    found = known_points()
    tuning = [point for point in found if point.kind == "fine-tuning"]
    assert len(tuning) == 16 and len({point.method.identity["hyper"]["lr"] for point in tuning}) > 6
    starter = next(point for point in tuning if point.name == "0.001, 64, 1")
    assert starter.kaggle == pytest.approx((0.0464 + 0.0583642010) / 2)  # both boards
    assert {point.name for point in found} >= {*FEW, "negative_gradient"}


def test_what_is_forecast_had_no_part_in_what_it_is_forecast_from():
    found = known_points(UNSEEN, sweep=False)
    assert len(found) == len(UNSEEN) and {point.kind for point in found} == {"method"}
    assert not {*UNSEEN} & {*METHODS} and not {point.name for point in found} & {point.name for point in known_points()}
    assert [point.kaggle for point in found] == [0.0152, 0.0680, 0.0844]


# -- the replay, small -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    setting = Setting("digits", "random:30", n_train=300, architecture="tinyconv", epochs=1, n_retain_sample=100)
    workspace = open_workspace(setting, tmp_path_factory.mktemp("work"))
    fill_retrained(workspace, 8, devices=["cpu"], progress=False)
    chosen = [point for point in known_points() if point.name in (*FEW[:4], "negative_gradient")]
    return replay(workspace, chosen, 8)


def test_a_replay_measures_every_point_and_can_be_written_and_drawn(replayed, tmp_path):
    assert len(replayed["points"]) == 5 and replayed["broken"] == []
    assert json.loads(json.dumps(replayed)) == replayed
    assert replayed["method"] is None and replayed["all"]["score"]["n_points"] == 5
    assert replayed["fine-tuning"]["score"]["n_points"] == 4
    for row in replayed["points"].values():
        assert {*DIRECTIONS} < {*row} and all(np.isfinite(value) for value in row.values() if value != row["kind"])
    assert any("0.001, 64, 4" in line for line in lines_of(replayed))
    assert plot(replayed, tmp_path / "picture.png").stat().st_size > 10_000


def test_models_are_taken_where_only_what_a_method_is_given_differs(tmp_path):
    setting = Setting("digits", "random:30", n_train=300, architecture="tinyconv", epochs=1, n_retain_sample=100)
    base, other = (open_workspace(replace(setting, passes=passes), tmp_path / "runs") for passes in (2, 1))
    take_models(base, other, 2)
    assert other.original_path.read_bytes() == base.original_path.read_bytes()
    assert all(pool_of(base).missing(n) == [] for pool_of, n in ((original_pool, 1), (retrained_pool, 2)))
    before = retrained_pool(other).read(2)
    for part, logits in retrained_pool(base).read(2).items():
        assert np.array_equal(before[part], logits)
    fill_retrained(other, 3, devices=["cpu"], progress=False)  # the same models as one that trains its own
    fill_retrained(base, 3, devices=["cpu"], progress=False)
    assert np.array_equal(retrained_pool(other).read(3)["test"], retrained_pool(base).read(3)["test"])


def test_every_stand_in_is_a_setting():
    for changed in STAND_INS.values():
        Setting(**(LIKE["competition"] | changed))


# -- what the record says of a setting ---------------------------------------------------------------------------------


@pytest.fixture
def record(tmp_path):
    """A record whose local scores are Kaggle's squared, with a little noise."""
    rng = np.random.default_rng(0)
    kaggle = np.geomspace(0.001, 0.1, 16)
    local = kaggle**2 * np.exp(0.1 * rng.normal(size=16))
    entry = {"setting": LIKE["competition"] | {"n_train": None, "epochs": None, "data_seed": 0}}
    entry["points"] = {
        str(i): {"expected at 512": x, "score": x, "kind": "method", "kaggle": y}
        for i, (x, y) in enumerate(zip(local, kaggle, strict=True))
    }
    path = tmp_path / "validity.json"
    path.write_text(json.dumps({"results": {"competition": entry}}))
    return path


def test_a_setting_of_the_recorded_kind_is_validated_and_no_other(record, tmp_path):
    setting = Setting(**LIKE["competition"])
    found = validation_of(replace(setting, data_seed=3, train_seed=1), record)
    assert found.n_points == 16 and found.spearman > 0.9
    low, high = found.interval
    assert f"{found.spearman:.2f} (95% interval {low:.2f} to {high:.2f}" in found.sentence
    for other in ({"passes": 1}, {"source": "gtsrb:super"}, {"architecture": "resnet18"}, {"epochs": 3}):
        assert validation_of(replace(setting, **other), record) is None
    assert validation_of(setting, tmp_path / "nothing.json") is None


def test_the_forecast_is_the_regressions_with_the_interval_of_a_new_observation(record):
    found = validation_of(Setting(**LIKE["competition"]), record)
    at = found.forecast(1e-4)
    x, y = np.log(np.maximum(found.local, 1e-4)), np.log(found.kaggle)
    line = stats.linregress(x, y)
    assert at.value == pytest.approx(np.exp(line.intercept + line.slope * np.log(1e-4)))
    assert at.low < at.value < at.high
    inside = [
        found.forecast(a).low < b < found.forecast(a).high for a, b in zip(found.local, found.kaggle, strict=True)
    ]
    assert 0.6 < np.mean(inside) <= 1
    assert found.forecast(0.0).value == found.forecast(1e-5).value  # below the least score all are alike
    assert found.forecast(0.5).value == found.forecast(0.5).high == ATTAINABLE


def test_the_verdict_says_what_the_setting_is_worth(monkeypatch, record):
    """Whether validated or not; with a forecast where there are models to make it from."""
    rng = np.random.default_rng(0)
    u, r = simulated_pools(32, 60, rng, common=0.05)
    samples = SimpleNamespace(methods={"mine": SimpleNamespace(confidence=u)}, retrained=SimpleNamespace(confidence=r))
    row = SimpleNamespace(name="mine", retain_ratio=1.0, test_ratio=0.9)
    setting = Setting(**LIKE["competition"])
    evidence = SimpleNamespace(
        workspace=SimpleNamespace(setting=setting), samples=samples, rows={"mine": row}, pools={}
    )
    monkeypatch.setattr(verdict, "validation_of", lambda its: validation_of(its, record))
    said = verdict._about_validity(evidence, "mine")
    assert "local_eval forecast" not in said  # no command line makes these models
    monkeypatch.setattr(verdict, "forecast_command", lambda *args: "python -m local_eval forecast")
    both = validation_together([Setting(**setting) for setting in LIKE.values()])
    assert f"together the correlation is {both.spearman:.2f}" in verdict._about_validity(evidence, "mine")
    assert "ranked 16 submissions as Kaggle did" in said and "on Kaggle (80% of new ones" in said
    beyond = f"lies beyond the {validation_of(setting, record).local.max():.4f} of the best of them"
    assert (beyond in said) == (expected_at_512(u, r) * 0.9 > validation_of(setting, record).local.max())
    samples.methods["mine"].confidence = u + 9.0
    assert "lies beyond" not in verdict._about_validity(evidence, "mine")
    evidence.workspace.setting = replace(setting, source="gtsrb:super")
    assert verdict._about_validity(evidence, "mine") == NOT_VALIDATED


def test_entries_of_one_setting_count_together_and_a_submission_once(record):
    facts = json.loads(record.read_text())["results"]
    first = facts["competition"]
    further = {"0": {"expected at 512": 0.5, "kaggle": 0.0001}, "new": {"expected at 512": 0.002, "kaggle": 0.05}}
    facts["methods"] = first | {"points": further}
    facts["other"] = {"setting": first["setting"] | {"recipe": "sgd"}, "points": further}
    record.write_text(json.dumps({"results": facts}))
    found = validation_of(Setting(**LIKE["competition"]), record)
    assert found.n_points == 17 and 0.05 in found.kaggle
    twice = np.sqrt(0.5 * max(1e-4, first["points"]["0"]["expected at 512"]))
    assert found.local[0] == pytest.approx(twice) and found.kaggle[0] == first["points"]["0"]["kaggle"]


def test_the_rank_correlation_is_scipys_with_ties_and_constants():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 20), rng.normal(size=20)
    value, (low, high) = rank_correlation(a, b)
    assert value == pytest.approx(stats.spearmanr(a, b).statistic)
    drawn = np.random.default_rng(0).integers(20, size=(2000, 20))
    again = [stats.spearmanr(a[rows], b[rows]).statistic for rows in drawn[:50]]
    assert low < np.min(again) + 0.3 and np.max(again) - 0.3 < high
    assert rank_correlation(np.zeros(5), np.arange(5)) == (0.0, (-1.0, 1.0))


def test_a_correlation_that_may_be_none_carries_no_forecast(record):
    facts = json.loads(record.read_text())
    for place, point in enumerate(facts["results"]["competition"]["points"].values()):
        point["expected at 512"] = 0.001 * (1 + place * 7 % 16)
    record.write_text(json.dumps(facts))
    found = validation_of(Setting(**LIKE["competition"]), record)
    assert not found.predicts and "does not predict Kaggle's order yet" in found.sentence


# -- several stand-ins together ----------------------------------------------------------------------------------------


@pytest.fixture
def two(record):
    """The record of two stand-ins, the second of which knows no submission 0 and one more, 16; and their settings."""
    facts = json.loads(record.read_text())["results"]
    first, rng = facts["competition"], np.random.default_rng(1)
    points = {
        str(i): first["points"].get(str(i), {"kaggle": 1.0}) | {"expected at 512": local, "score": local}
        for i, local in enumerate((rng.random(16) / 100).tolist(), start=1)
    }
    second = {"setting": first["setting"] | {"source": "gtsrb:super"}, "points": points}
    record.write_text(json.dumps({"results": {**facts, "clean labels": second, "together": {"points": {}}}}))
    return [Setting(**LIKE[name]) for name in ("competition", "competition-clean")]


def test_stand_ins_together_are_asked_by_their_geometric_mean(record, two):
    found, each = validation_together(two, record), [validation_of(setting, record) for setting in two]
    assert {*found.names} == {*each[0].names} & {*each[1].names} and found.n_points == 15
    of = [dict(zip(one.names, np.maximum(one.local, 1e-4), strict=True)) for one in each]
    assert found.local == pytest.approx([np.sqrt(of[0][name] * of[1][name]) for name in found.names])
    assert found.spearman == pytest.approx(stats.spearmanr(found.local, found.kaggle).statistic)
    assert "These stand-ins together" in found.about(0.001)
    assert validation_together([two[0], replace(two[1], passes=1)], record) is None
    assert geometric_mean([0.0, 1e-2]) == pytest.approx(1e-3)


def test_the_record_of_both_has_every_submission_once(replayed, tmp_path):
    entries = {
        name: replayed | {"setting": LIKE[like] | {"n_train": None, "epochs": None}}
        for name, like in (("a", "competition"), ("b", "competition-clean"))
    }
    path = tmp_path / "validity.json"
    path.write_text(json.dumps({"results": entries}))
    found = together(path)
    assert found["points"].keys() == replayed["points"].keys() and found["all"]["score"]["n_points"] == 5
    for name, point in found["points"].items():
        assert point["score"] == pytest.approx(max(1e-4, replayed["points"][name]["score"]))
    assert any("0.001, 64, 4" in line for line in lines_of(found))
    assert plot(found, tmp_path / "picture.png").stat().st_size > 10_000


def test_a_forecast_stands_beside_what_was_got(monkeypatch, tmp_path):
    small = {"source": "digits", "forget": "random:30", "n_train": 300, "architecture": "tinyconv", "epochs": 1}
    likes = {"competition": small, "competition-clean": small | {"data_seed": 1}}
    monkeypatch.setattr(replays, "LIKE", likes)
    monkeypatch.setattr(replays, "UNSEEN", {"negative gradient": ("negative_gradient", [])})
    settings = [Setting(**LIKE[name]) for name in likes]
    monkeypatch.setattr(replays, "validation_together", lambda _: validation_together(settings))
    found = unseen(tmp_path, None, 8)
    (point,) = found["points"].values()
    assert json.loads(json.dumps(found)) == found and [*point["expected"]] == [*likes]
    assert point["together"] == pytest.approx(geometric_mean([*point["expected"].values()]))
    forecast = validation_together(settings).forecast(point["together"])
    assert point["forecast"] == {**point["forecast"], "value": forecast.value, "low": forecast.low}
    assert point["inside"] == (forecast.low <= 0.0001 <= forecast.high)
    assert lines_of_forecasts(found)[0].endswith("on Kaggle; it got 0.0001")
