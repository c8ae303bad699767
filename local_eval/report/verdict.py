"""The answer that a page begins with: upload or not, why, and the main fault."""

from dataclasses import dataclass

import numpy as np

from kit.competition import N_CHECKPOINTS
from local_eval.assess import FEWEST, Assessment, Form
from local_eval.audit.intervals import Interval, decimals
from local_eval.audit.predict import RANKABLE
from local_eval.evaluate import DO_NOTHING
from local_eval.report import kaggle
from local_eval.report.assessment import interval_text, sure
from local_eval.report.evidence import Evidence
from local_eval.report.next_step import forecast_command, next_command
from local_eval.report.notes import TIME_LIMIT, time_sentence
from local_eval.setting import LIKE, Setting
from local_eval.validity import NOT_VALIDATED, expected_score, validation_of, validation_together

_SURE = 0.95
_ACCURACY_LOST = 0.05  # of the score: below this the accuracies are not worth a line
_MEMORISES = 0.06  # generalisation gap from which scores are no longer like the competition's


@dataclass(frozen=True)
class Verdict:
    """upload: None where nothing can be said; headline: the answer in a few words; reasons: sentences; fault: the main
    fault and the next thing to try, in one sentence; command: what to do next, to be copied."""

    upload: bool | None
    headline: str
    reasons: tuple[str, ...]
    fault: str
    command: str


def verdict(evidence: Evidence, name: str) -> Verdict:
    """Upload where the score expected at 512 models is at least the share of the attainable that the starter's
    fine-tuning reached on Kaggle, and not below what that fine-tuning gets in this setting."""
    if fault := evidence.faults.get("") or evidence.faults.get(name):
        mend = "Delete what is broken, run the command that made it again (it keeps the rest), then this one."
        headline, command = "Nothing can be said: the evaluation is broken", next_command(evidence, name, None)
        return Verdict(None, headline, (fault.rstrip(".?") + ".", mend), "", command)
    n_models = evidence.rows[name].n_models
    if name not in evidence.assessments and n_models >= FEWEST:
        reason = "The score is a mean over the images to forget, and nothing tells how far a single one can be trusted."
        command = next_command(evidence, name, None)
        return Verdict(None, "Nothing can be said: one image is too few", (reason, "Forget more."), "", command)
    if n_models < FEWEST:
        command = next_command(evidence, name, None)
        made_here = command.startswith("python -m local_eval run ")
        more = "make more with the same command and a larger --n-models" if made_here else "give more checkpoints"
        reason = (
            f"The score compares distributions over models. With {n_models} of each kind it says nothing: intervals "
            f"need {FEWEST}, a ranking {RANKABLE}; {more}."
        )
        return Verdict(None, f"Nothing can be said: {n_models} models are too few", (reason,), "", command)
    assessment = evidence.assessments[name]
    form = assessment.forms[evidence.attacks]
    reasons = [*_about_score(evidence, name, form), *_about_rest(evidence, name, assessment)]
    reasons.append(_about_validity(evidence, name))
    upload, headline = _answer(evidence, name, form, n_models)
    command = next_command(evidence, name, upload)
    return Verdict(upload, headline, tuple(reasons), main_fault(assessment, form), command)


def _answer(evidence: Evidence, name: str, form: Form, n_models: int) -> tuple[bool | None, str]:
    if n_models < RANKABLE:
        return None, f"Undecided: {n_models} models are too few to tell"
    share = expected_share(form)
    above = _above_starter(evidence, name)
    if share is None or share.value == 0:
        return False, "Do not upload: the score is 0"
    if above is not None and above < 1 - _SURE:
        return False, "Do not upload: the starter's own fine-tuning scores more"
    if share.high < kaggle.STARTER_SHARE:
        return False, "Do not upload yet"
    if form.predicted is None and n_models < N_CHECKPOINTS:  # a share at few models says too much
        return None, f"Undecided: what {N_CHECKPOINTS} models would get cannot be told from {n_models}"
    if share.low >= kaggle.STARTER_SHARE:
        return True, "Upload"
    narrowly = share.value >= kaggle.STARTER_SHARE
    return narrowly, "Upload, though it is a close call" if narrowly else "Do not upload yet, though it is a close call"


def expected_share(form: Form) -> Interval | None:
    """The score expected at 512 models as a share of the null at 512; as measured where no prediction is made."""
    if form.predicted is None or form.null_at_512 is None:
        return form.share
    p, null = form.predicted, form.null_at_512.value
    return Interval(p.value / null, p.low / null, p.high / null, p.standard_error / null, p.level)


def _above_starter(evidence: Evidence, name: str) -> float | None:
    if evidence.starter in (None, name):
        return None
    return evidence.probability_above(name, evidence.starter)


def _about_score(evidence: Evidence, name: str, form: Form) -> list[str]:
    row = evidence.rows[name]
    reasons = []
    if form.share is not None and form.score is not None:
        reasons.append(
            f"With {row.n_models} models it scores {interval_text(form.score)}, which is {_percent(form.share)} of "
            f"what a perfect unlearner gets here ({form.null.value:.3f})."
        )
    if form.predicted is None and form.unpredicted and row.score > 0:
        reasons.append(f"Nothing is predicted for {N_CHECKPOINTS} models: {form.unpredicted}.")
    if form.predicted is not None and form.null_at_512 is not None and (share := expected_share(form)) is not None:
        reasons.append(
            f"With {N_CHECKPOINTS} models {interval_text(form.predicted)} is to be expected, {_percent(share)} of the "
            f"{form.null_at_512.value:.3f} attainable then. An upload pays from about "
            f"{kaggle.STARTER_SHARE:.0%} on: so much the starter's fine-tuning "
            f"got on Kaggle ({kaggle.STARTER.score} of {kaggle.ATTAINABLE})."
        )
    if evidence.starter == name:
        reasons.append("This is the starter's own fine-tuning.")
    elif (above := _above_starter(evidence, name)) is not None:
        other = evidence.rows[evidence.starter].score
        reasons.append(
            f"It scores above the starter's fine-tuning ({decimals(other)} here) with a probability of {sure(above)}."
        )
    elif DO_NOTHING in evidence.rows:
        reasons.append(
            "The starter's fine-tuning was not measured in this setting; to have it beside this method: "
            f"python -m local_eval unlearn --setting {evidence.workspace.folder} --n-models {row.n_models}"
        )
    return reasons


def _about_rest(evidence: Evidence, name: str, assessment: Assessment) -> list[str]:
    row, nothing = evidence.rows[name], evidence.rows.get(DO_NOTHING)
    reasons = [evidence.remark] if evidence.remark else []
    kept = row.retain_ratio * row.test_ratio
    if 1 - kept > _ACCURACY_LOST:
        reasons.append(
            f"Lost accuracy costs {1 - kept:.0%} of the score: it is {row.retain_ratio:.3f} times the retrained "
            f"models' on the retain set, {row.test_ratio:.3f} times on the test set."
        )
    if (row.time_ratio or 0) > TIME_LIMIT:
        reasons.append(f"A checkpoint {time_sentence(row)}.")
    if nothing and (gap := nothing.retain_accuracy - nothing.test_accuracy) > _MEMORISES:
        reasons.append(
            f"The original model here memorises more than the competition's (generalisation gap {gap:.1%} against "
            f"{kaggle.GENERALISATION_GAP:.1%}): mild methods score lower here than they would there."
        )
    return reasons


def _about_validity(evidence: Evidence, name: str) -> str:
    """What the score says of Kaggle's."""
    validation = validation_of(evidence.workspace.setting)
    if validation is None:
        return NOT_VALIDATED
    if evidence.samples is None:
        return validation.sentence
    said = validation.about(expected_score(evidence.samples, evidence.rows[name]))
    together = validation_together([Setting(**setting) for setting in LIKE.values()])
    if not validation.predicts or together is None or (command := forecast_command(evidence, name)) is None:
        return said
    low, high = together.interval
    return (
        f"{said} By {' and '.join(LIKE)} together the correlation is {together.spearman:.2f} "
        f"({low:.2f} to {high:.2f}): {command}"
    )


def main_fault(assessment: Assessment, form: Form) -> str:
    """What costs most of the score: the accuracies, where they do, else what the diagnosis says."""
    retain, test = assessment.retain_ratio, assessment.test_ratio
    if retain is None or test is None or form.null is None or retain.value * test.value == 0:
        return assessment.sentence
    lost_accuracy = -np.log(retain.value * test.value)
    lost_quality = np.log(form.null.value / form.quality.value) if form.quality.value > 0 else np.inf
    if lost_accuracy <= max(lost_quality, _ACCURACY_LOST):
        return assessment.sentence
    weaker = "retain" if retain.value <= test.value else "test"
    return (
        f"your {assessment.n_models} checkpoints lose accuracy: retain {retain.value:.3f} and test {test.value:.3f} "
        f"times the retrained models', which costs more than what they fail to forget; try next: more training on the "
        f"retain set after the change, or less of it, until the {weaker} accuracy is back"
    )


def percent(share: float) -> str:
    if 0 < share < 0.0005:
        return "below 0.1%"
    return f"{share:.0%}" if share >= 0.1 or share == 0 else f"{share:.1%}"


def _percent(interval: Interval) -> str:
    digits = 0 if interval.value >= 0.1 else 1
    return f"{interval.value:.{digits}%} [{interval.low:.{digits}%}, {interval.high:.{digits}%}]"
