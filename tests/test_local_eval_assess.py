"""Assessment of simulated pools whose truth is known, and the commands that print it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from kit.emit import emit
from kit.errors import InputError
from kit.methods import get_method
from local_eval.__main__ import main
from local_eval.archived import fill_from_archive
from local_eval.arrays import judge
from local_eval.assess import KLOM, NOT_NORMAL, agreement, assess, assess_confidences, measures
from local_eval.audit import Interval, families
from local_eval.evaluate import DO_NOTHING, NULL, Sample, Samples, evaluate
from local_eval.leaderboard import Entry
from local_eval.metric import FORMS, MetricSpec, bins_as_in_code, bins_as_in_report, forgetting_quality, grid_epsilon
from local_eval.report.assessment import (
    agreement_lines,
    assessment_facts,
    assessment_lines,
    interval_text,
    measure_lines,
    probability_lines,
)
from local_eval.report.leaderboard import cells
from local_eval.report.notes import notes_on
from local_eval.report.verdict import expected_share
from local_eval.retrained import fill_retrained
from local_eval.setting import open_workspace, reopen
from local_eval.unlearned import fill_unlearned

N, EXAMPLES, CLASSES = 32, 60, 4


def pool(seed, shift=0.0, spread=1.0, n_models=N):
    """Logits around fixed means of examples; `shift` and `spread` act on the label's logit."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    logits, labels = {}, {}
    for part in ("forget", "retain", "test"):
        labels[part] = fixed.integers(CLASSES, size=EXAMPLES)
        mean = fixed.normal(size=(EXAMPLES, CLASSES)) + 2.0 * np.eye(CLASSES)[labels[part]]
        values = mean + 0.3 * rng.normal(size=(n_models, EXAMPLES, CLASSES))
        rows = np.arange(EXAMPLES)
        own = spread * rng.normal(size=(n_models, EXAMPLES)) + shift
        values[:, rows, labels[part]] = mean[rows, labels[part]] + own
        logits[part] = values.astype(np.float32)
    return Sample(logits, labels, np.ones(n_models))


@pytest.fixture(scope="module")
def samples():
    methods = {"perfect": pool(1), "shifted": pool(2, shift=1.5), "narrow": pool(3, spread=0.2)}
    return Samples(methods, retrained=pool(4), original=pool(5, shift=4.0, n_models=1))


@pytest.fixture(scope="module")
def assessed(samples, rough_predictions):
    return assess(samples, n_resamples=10)


def test_a_perfect_unlearner_reaches_the_null_and_the_others_do_not(assessed):
    shares = {a.name: a.forms["grid"].share for a in assessed[0]}
    assert shares["perfect"].low < 1 < shares["perfect"].high
    assert shares["shifted"].high < 1
    assert shares["narrow"].high < 1
    assert shares[DO_NOTHING].value == 0


def test_the_sentence_names_the_fault(assessed):
    sentences = {a.name: a.sentence for a in assessed[0]}
    assert "too sure of the forgotten examples" in sentences["shifted"]
    assert "vary too little between runs" in sentences["narrow"]
    assert "they all give the same confidences" in sentences[DO_NOTHING]
    assert "near what retraining gives" in sentences["perfect"]


def test_each_form_stands_beside_its_own_null_and_a_prediction(assessed):
    perfect = assessed[0][0]
    grid, exact = perfect.forms["grid"], perfect.forms["exact"]
    assert exact.null.value < grid.null.value
    assert grid.predicted.low < grid.predicted.value < grid.predicted.high
    assert assessed[0][-1].forms["grid"].predicted is None, "nothing can be predicted from a score of 0"


def test_the_better_method_scores_above_the_worse(assessed):
    above = assessed[1]
    assert above["perfect", "shifted"] > 0.95
    assert above["perfect", DO_NOTHING] > 0.95
    assert above["perfect", "narrow"] > 0.95


def test_intervals_hold_the_point_values_of_the_table(samples, assessed):
    rows = {row.name: row for row in evaluate(samples)}
    for assessment in assessed[0]:
        row, form = rows[assessment.name], assessment.forms["grid"]
        assert form.quality.value == pytest.approx(row.forgetting_quality)
        assert form.score.value == pytest.approx(row.score)
        assert assessment.retain_ratio.value == pytest.approx(row.retain_ratio)
        assert assessment.test_ratio.value == pytest.approx(row.test_ratio)
        assert (assessment.lower_bounds.epsilon <= 50).all()


def test_other_measures_and_their_agreement_with_the_score(samples):
    measured = measures(samples)
    assert list(measured) == ["perfect", "shifted", "narrow", DO_NOTHING, NULL]
    assert measured["perfect"]["U-LiRA accuracy"] == pytest.approx(0.5, abs=0.05)
    assert measured["shifted"]["U-LiRA accuracy"] > 0.6
    assert measured["perfect"]["TPR at 1% FPR"] < 0.03
    scores = {row.name: row.score for row in evaluate(samples) if row.name in samples.methods}
    ranks = agreement(scores, measured)
    assert ranks.names[0] == "score"
    epsilon = ranks.names.index("epsilon at delta 1e-05")
    assert ranks.spearman[0, epsilon] == pytest.approx(1.0)
    assert agreement(dict(list(scores.items())[:2]), measured) is None
    assert len(agreement_lines(ranks)) == len(ranks.names) + 1
    assert measured["perfect"][NOT_NORMAL] < 0.3 and NOT_NORMAL not in ranks.names


def test_one_null_at_the_number_of_models_it_is_compared_with(samples, assessed):
    """The table's row, the assessment, the notes and the other measures all speak of the same null."""
    row = evaluate(samples)[-1]
    form = assessed[0][0].forms["grid"]
    assert row.name == NULL and row.n_models == samples.n_models
    assert row.score == row.forgetting_quality == form.null.value
    assert (row.retain_ratio, row.test_ratio) == (1.0, 1.0)
    assert measures(samples)[NULL]["epsilon at delta 1e-05"] == row.mean_epsilon
    assert f"scores about {row.forgetting_quality:.3f} here" in "\n".join(notes_on([row]))
    exact = assessed[0][0].forms["exact"]
    assert exact.null_at_512.value < 0.75 * exact.null.value, "few models make the exact null easy"
    assert exact.null_at_512.value == pytest.approx(0.046, abs=0.012)  # simulated with Gaussian confidences
    with_512 = expected_share(exact)
    assert with_512.value == pytest.approx(exact.predicted.value / exact.null_at_512.value)


def test_what_is_printed_and_written_holds_it_all(samples, assessed):
    assessments, above = assessed
    measured = measures(samples)
    text = "\n".join(assessment_lines(assessments[0]) + probability_lines(above, N) + measure_lines(measured))
    for piece in ("perfect (N = 32", "share of attainable", "predicted at N = 512", "U-LiRA AUC", "scores above"):
        assert piece in text
    facts = json.loads(json.dumps(assessment_facts(assessments, above, measured, None)))
    assert len(facts["assessments"]) == 4
    assert len(facts["assessments"][0]["diagnosis"]["from_shift"]) == EXAMPLES


def test_examples_without_a_measurement_are_listed(assessed):
    nothing = assessed[0][-1]
    assert nothing.name == DO_NOTHING
    assert nothing.too_tight.tolist() == list(range(EXAMPLES)), "copies of one model: no spread at all"
    text = "\n".join(assessment_lines(nothing))
    assert f"{EXAMPLES} examples have the largest epsilon unmeasured" in text
    assert "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..." in text
    assert len(assessed[0][0].too_tight) == 0


def test_confidences_alone_are_assessed_alike(samples, assessed, rough_predictions):
    sample = samples.methods["shifted"]
    alone, above = assess_confidences({"shifted": sample.confidence}, samples.retrained.confidence, n_resamples=10)
    with_accuracies = assessed[0][1]
    assert above == {}
    assert alone[0].forms["grid"].quality == with_accuracies.forms["grid"].quality
    assert alone[0].forms["exact"].null == with_accuracies.forms["exact"].null
    assert alone[0].sentence == with_accuracies.sentence
    assert alone[0].forms["grid"].score is None
    assert alone[0].retain_ratio is None
    assert "share of attainable" in "\n".join(assessment_lines(alone[0]))


def test_small_values_keep_two_digits():
    assert interval_text(Interval(0.0059, 0.0057, 0.0062, 0.0001)) == "0.0059 [0.0057, 0.0062]"
    assert interval_text(Interval(0.000391, 0.00037, 0.00042, 0.0001)) == "0.00039 [0.00037, 0.00042]"
    assert interval_text(None) == "-"


def test_what_is_above_0_never_reads_as_0():
    tiny = Interval(0.0312, 0.00001, 0.2, 0.1)
    assert str(tiny) == interval_text(tiny) == "0.0312 [<0.0001, 0.2000]"
    assert interval_text(Interval(0.0, 0.0, 0.00003, 0.0)) == "0.000000 [0.000000, 0.000030]"
    assert interval_text(Interval(0.00003, 0.0000001, 0.2, 0.1)) == "0.000030 [<0.000001, 0.200000]"
    entry = Entry("mine", {}, score=tiny, predicted=Interval(0.00002, 0.00001, 0.1, 0.1))
    texts = [cell.text for cell in cells(entry)]
    assert texts[1:3] == ["0.0312", "<0.0001-0.2000"] and texts[4] == "<0.0001"
    assert cells(entry)[2].value == 0.00001  # a page sorts by the number itself
    nothing = Entry("mine", {}, score=Interval(0.0, 0.0, 0.1, 0.0))
    assert [cell.text for cell in cells(nothing)][1:3] == ["0.0000", "0.0000-0.1000"]


def test_confidences_of_a_file_get_intervals_and_other_constants(tmp_path, samples, capsys, rough_predictions):
    arrays = (samples.methods["narrow"].confidence, samples.retrained.confidence)
    path = tmp_path / "mine.npz"
    np.savez(path, unlearned_confidence=arrays[0], retrained_confidence=arrays[1])
    assert main(["score", "--confidences", str(path), "--quiet"]) == 0
    text = capsys.readouterr().out
    for piece in ("forgetting quality", "share of attainable", "vary too little between runs", "32 models"):
        assert piece in text
    quality = {}
    for options in ([], ["--bins", "report"], ["--delta", "0.1"], ["--cap", "0.7"]):
        assert main(["score", "--confidences", str(path), "--brief", "--json", *options]) == 0
        facts = json.loads(capsys.readouterr().out)
        spec = MetricSpec(
            bins=bins_as_in_report if "report" in options else bins_as_in_code,
            delta=0.1 if "0.1" in options else 1e-5,
            cap=0.7 if "0.7" in options else 50.0,
        )
        expected = grid_epsilon(*arrays, spec).epsilon
        assert facts["epsilon"] == expected.tolist()
        assert facts["forgetting_quality"] == forgetting_quality(expected, N, spec)
        quality[tuple(options)] = facts["forgetting_quality"]
    assert len(set(quality.values())) == 3, "at 32 models no epsilon lies where the two counts of bins differ"
    assert main(["score", "--confidences", str(path), "--delta", "2"]) == 2
    assert "delta is 2.0: give a probability" in capsys.readouterr().err


def test_too_few_models_are_told(samples):
    few = Samples({}, samples.retrained.take(slice(0, 4)), samples.original)
    with pytest.raises(InputError, match="intervals need at least 8"):
        assess(few)
    confidence = samples.retrained.confidence
    with pytest.raises(InputError, match="methods of 9 to 10 models: compare as many of each"):
        assess_confidences({"a": confidence[:9], "b": confidence[:10]}, confidence)


@pytest.fixture
def workspace(copied):
    return reopen(copied[0])


def test_compare_prints_everything_about_two_pools(workspace, capsys, rough_predictions):
    pools = [str(next(workspace.folder.glob(f"{name}-*"))) for name in ("finetune", "random_perturbation")]
    assert main(["compare", *pools, "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "which of two scores higher cannot be told from 8 models: that needs 32" in text
    assert "100.0%" not in text
    assert "share of attainable" in text
    assert main(["score", pools[0], "--brief", "--attacks", "exact", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["attacks"] == "exact"
    assert "assessments" not in facts
    assert main(["compare", pools[0]]) == 2
    assert "give two or more" in capsys.readouterr().err


def test_an_archive_scores_as_the_pool_of_the_same_checkpoints(workspace, tmp_path, capsys):
    method = get_method("finetune")
    loaders = workspace.loaders(method.loader)
    archive = emit(method, workspace.original(), loaders, out=tmp_path, n_checkpoints=8, progress=False).archive
    pool = fill_from_archive(workspace, archive, devices=["cpu"], progress=False).read(8)
    other = fill_unlearned(workspace, method, 8, devices=["cpu"], progress=False).read(8)
    assert all(np.array_equal(pool[part], other[part]) for part in ("forget", "retain", "test"))
    assert (pool["seconds"] > 0).all(), "from the ledger beside the archive"
    command = [
        "score",
        str(archive),
        "--setting",
        str(workspace.folder),
        "--brief",
        "--quiet",
        "--slots",
        "1",
        "--json",
    ]
    assert main(command) == 0
    ours = json.loads(capsys.readouterr().out)["rows"][0]
    assert main(["score", str(next(workspace.folder.glob("finetune-*"))), "--brief", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["score"] == ours["score"]


def test_archives_that_cannot_be_scored(workspace, tmp_path, capsys):
    (tmp_path / "x.zip").write_bytes(b"no zip")
    assert main(["score", str(tmp_path / "x.zip")]) == 2
    assert "needs --setting" in capsys.readouterr().err
    assert main(["score", str(tmp_path / "x.zip"), "--setting", str(workspace.folder), "--quiet"]) == 2
    assert "is no archive of checkpoints" in capsys.readouterr().err


def test_an_archive_made_from_another_original_is_refused(workspace, tmp_path, capsys):
    other = open_workspace(replace(workspace.setting, train_seed=5), tmp_path / "runs", progress=False)
    fill_retrained(other, 2, devices=["cpu"], progress=False)
    method = get_method("finetune")
    loaders = workspace.loaders(method.loader)
    emitted = emit(method, workspace.original(), loaders, out=tmp_path / "out", n_checkpoints=2, progress=False)
    options = ["--setting", str(other.folder), "--brief", "--quiet", "--slots", "1"]
    assert main(["score", str(emitted.archive), *options]) == 2
    err = capsys.readouterr().err
    assert f"was made from another original model than that of {other.folder}" in err
    assert err.count("\n") == 1
    (tmp_path / "out/ledger.jsonl").unlink()  # nothing says so any more
    assert main(["score", str(emitted.archive), *options]) == 0


@pytest.mark.parametrize(("n_unlearned", "n_retrained"), [(16, 64), (64, 16)])
def test_of_unequal_numbers_a_perfect_unlearner_reaches_its_null(n_unlearned, n_retrained, rough_predictions):
    rng = np.random.default_rng(0)
    u, r = rng.normal(size=(n_unlearned, 300)), rng.normal(size=(n_retrained, 300))
    found = judge(u, r, attacks="exact")
    form, equal = found.assessment.forms["exact"], judge(u[:16], r[:16], attacks="exact")
    assert found.forgetting_quality == equal.forgetting_quality == form.quality.value
    assert form.share.low < 1 < form.share.high
    assert form.null.value == pytest.approx(equal.null, rel=0.5)
    assert found.assessment.n_models == 16


def test_the_probabilities_are_of_the_form_that_is_asked_for(samples, rough_predictions):
    both = {form: assess(samples, attacks=form, n_resamples=10) for form in FORMS}
    assert both["grid"][1] != both["exact"][1]
    epsilon = {form: found[0][0].diagnosis.epsilon for form, found in both.items()}
    assert (epsilon["exact"] >= epsilon["grid"] - 1e-9).all()


def test_retraining_has_no_larger_klom_than_what_is_off():
    """At half as many models KLOM is larger: what is brought from there is that of a perfect unlearner."""
    perfect, retrained = pool(1, n_models=32), pool(4, n_models=32)
    found = measures(Samples({"perfect": perfect}, retrained=retrained, original=pool(5, n_models=1)))
    assert found[NULL][KLOM] == pytest.approx(found["perfect"][KLOM], rel=0.25)
    half = families.klom(retrained.confidence[:16], retrained.confidence[16:])
    assert np.percentile(half, 95) > 1.4 * found["perfect"][KLOM]
