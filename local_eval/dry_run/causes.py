"""Why something failed, as far as the record of the run tells: what this machine lacks, how a checkpoint came about."""

import ast
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from kit.competition import ARCHIVE_NAME, MEMBER_NAME, WORKING_DIR
from kit.tools.verify import ZIP_AGAIN, Check
from local_eval.dry_run.kaggle_image import PACKAGES, pip_install
from local_eval.dry_run.outcome import Event, Outcome

_FOLDER = MEMBER_NAME.rpartition("/")[0]
_INPUT = re.compile(r"/kaggle/input/([\w.-]+)(?=[/'\"\s]|$)")
_NO_GPU = re.compile(  # what only a GPU's driver can answer; an error of a GPU that is there reads otherwise
    r"the dry run has no GPU|NVIDIA driver|not compiled with CUDA|Device-side assertions were explicitly omitted|"
    r"No CUDA GPUs are available|no GPUs found|CUDA driver|cudaErrorNoDevice|active drivers"
)
_KITS_CELL = "%%writefile unlearning_kit.py\n"  # as notebooks/build.py makes it
_EMPTY = re.compile(
    r"^(IndexError|StopIteration)|num_samples=0|argument is empty|empty (list|sequence|iterable)|"
    r"No objects to concatenate"
)


def excuse(outcome: Outcome, inputs: Path) -> str | None:
    """Why a run ended for want of something that Kaggle would have had, and how to give it; None where the fault is the
    program's. inputs: the folder that stands for /kaggle/input."""
    if outcome.fault is None or outcome.fault.kind != "crash":
        return None
    if _NO_GPU.search(outcome.fault.message):
        return (
            "no fault of the notebook: this asks the driver of a GPU, which the dry run cannot pretend: run it where "
            "there is one (--device cuda), or leave this line out to try the rest"
        )
    name = missing_module(outcome)
    if name in PACKAGES:
        return (
            f"no fault of the notebook: Kaggle's image has {name}, this machine has not: "
            f"{pip_install([name])}, then run the dry run again, or give it --install-kaggle-packages"
        )
    text = "\n".join(code.text for code in outcome.program.codes)
    places = [outcome.fault.message, outcome.fault.where]
    if name is not None or _EMPTY.search(outcome.fault.message):  # it may lie in a data set, or was looked for in one
        places.append(text)
    asked = [name for place in places for name in _INPUT.findall(place) if not (inputs / name).exists()]
    if asked:
        return (
            f"/kaggle/input/{asked[0]} is no data of the competition: if it is attached to the notebook on Kaggle, "
            f"give the dry run its folder: --input {asked[0]}=FOLDER"
        )
    return None


def missing_module(outcome: Outcome) -> str | None:
    """The package that an import did not find; None where it is here, and a part of it was asked for that is not."""
    missing = re.search(r"No module named '?(\w+)(\.\w+)?", outcome.fault.message)
    return missing[1] if missing and not (missing[2] and find_spec(missing[1])) else None


def with_causes(checks: Sequence[Check], outcome: Outcome) -> list[Check]:
    """The checks of an archive, with what was seen of how a faulty checkpoint came about."""
    return [_with_cause(check, outcome) for check in checks]


def _with_cause(check: Check, outcome: Outcome) -> Check:
    if check.ok is not False:
        return check
    event = _saving_of(check.found, outcome)
    event = event if event and event["steps"] is not None else None
    if check.name == "members" and ZIP_AGAIN in check.remedy:
        return replace(check, remedy=check.remedy.replace(ZIP_AGAIN, _archiving(outcome)))
    if check.name == "tensors" and event and "NaN" in check.found:
        return replace(check, found=check.found + _first_nan(event, outcome))
    if check.name == "all different" and event and "equals the original" in check.found:
        found, remedy = _why_original(event, outcome)
        last = outcome.saves[-1]
        if last is not event and last["steps"] is not None and _all_faulty(check, outcome):
            # The first may have counted what came before all runs, such as steps that measure the speed.
            found, remedy = _why_original(last, outcome)
            found = found.replace("in that run", "in the last run", 1)
        return replace(check, found=f"{check.found}: {found}", remedy=remedy)
    return check


def _all_faulty(check: Check, outcome: Outcome) -> bool:
    more = re.search(r" \(and (\d+) more\)$", check.found)
    return more is not None and int(more[1]) + 1 == len(outcome.saves)


def _saving_of(found: str, outcome: Outcome) -> Event | None:
    """The last saving of the checkpoint that is named first."""
    name = re.search(r"unlearned_checkpoint_(\d+)\.pth", found)
    named = [event for event in outcome.saves if name and (event["path"] or "").endswith(name[0])]
    index = int(name[1]) if name else len(outcome.saves)
    return named[-1] if named else outcome.saves[index] if index < len(outcome.saves) else None


def _archiving(outcome: Outcome) -> str:
    """The line that makes an archive with the right names, by the means that the program uses."""
    text = "\n".join(code.text for code in outcome.program.codes)
    if "make_archive" in text:
        stem = f"{WORKING_DIR}/{ARCHIVE_NAME.partition('.')[0]}"
        return f'shutil.make_archive("{stem}", "zip", root_dir="/", base_dir="{_FOLDER}")'
    if "ZipFile" in text:
        return f'archive.write(path, "{_FOLDER}/" + os.path.basename(path))'
    return ZIP_AGAIN


def _first_nan(event: Event, outcome: Outcome) -> str:
    run, first = outcome.saves.index(event), event["first_nan"]
    if first is None:
        return f"; no step of an optimiser in run {run} made it"
    return (
        f"; the first NaN of run {run} came with step {first['step']} of {event['steps']}{outcome.at(first['where'])}"
    )


def _why_original(event: Event, outcome: Outcome) -> tuple[str, str]:
    """What a checkpoint that equals the original looks like, and the remedy."""
    steps = f"{event['steps']} step{'s' * (event['steps'] != 1)} of an optimiser"
    if event["stored_is_trained"] is False:
        return (
            f"in that run {steps} changed another net than the one that was saved",
            "save the state_dict() of the net that the function trained or returned",
        )
    if event["steps"] == 0 and not event["in_train_mode"]:
        swallowing = _swallowing(outcome)
        return (
            "in that run nothing was trained: no step of an optimiser, no forward pass in training mode",
            f"look whether an exception is swallowed{swallowing}, or the training is skipped",
        )
    if event["steps"]:
        return (
            f"in that run {steps} left the weights as they were",
            "look for a learning rate of 0, frozen parameters, or the original loaded again before the net is saved",
        )
    return (
        "in that run nothing was changed: forward passes, but no step of an optimiser",
        "call optimizer.step(), or change the weights themselves",
    )


def _swallowing(outcome: Outcome) -> str:
    """Where the program catches exceptions and goes on; what the kit catches by itself is no fault of a method."""
    for code in outcome.program.codes:
        if code.text.startswith(_KITS_CELL):
            continue
        tree = code.tree()
        tries = [node for node in ast.walk(tree) if isinstance(node, ast.Try)] if tree is not None else []
        for one in tries:
            imports = all(isinstance(statement, ast.Import | ast.ImportFrom) for statement in one.body)
            for handler in () if imports else one.handlers:
                if not any(isinstance(node, ast.Raise) for node in ast.walk(handler)):
                    return outcome.at({"cell": code.number, "line": handler.lineno})
    return ""
