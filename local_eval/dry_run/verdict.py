"""What Kaggle would have said of a dry run: one check a line, with the remedy where it fails."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kit.budget import format_duration
from kit.competition import MEMBER_NAME, N_CHECKPOINTS, SPLITS, TIME_LIMIT_S
from kit.tools.verify import Check
from local_eval.dry_run.causes import excuse, missing_module
from local_eval.dry_run.outcome import MEMBER, Event, Outcome
from local_eval.dry_run.projection import Projection
from local_eval.dry_run.weights import Statistics

# The starter's 512 float32 checkpoints are 19.9 to 20.1 GiB as zip leaves them, and were taken.
DISK_LIMIT_BYTES = 20.3 * 2**30
TIGHT_BYTES = 19 * 2**30
NEARLY_ALIKE = 0.02  # spread between runs over that of retrained models
WORST_SHIFT, WORST_RATIO = 5.0, 20.0  # of BatchNorm statistics: honest methods stay below 2 and 5
SMALL_INPUT = 20.0  # images of 0..255 have larger values, normalised ones do not
_UNSURE = 1.25  # times the limit: so far beyond it an estimate may still be wrong
READ_AGAIN = 0.5  # of the images, in one run


def program_checks(outcome: Outcome, kaggle: Path, n_models: int, n_images: int) -> list[Check]:
    """What was seen while the program ran. kaggle: the folder that stands for /kaggle; n_images: of the input tree."""
    return [
        _ended(outcome, excuse(outcome, kaggle / "input")),
        _kernel(outcome),
        _stray_files(outcome, kaggle / "tmp", n_models),
        _seeds(outcome),
        _reading(outcome, n_images),
        _cached_images(outcome),
        _inputs(outcome),
        _shared_net(outcome),
        _offline(outcome),
        _writes(outcome),
        _processes(outcome),
    ]


def _check(name: str, faults: Sequence[str], fine: str, remedy: str) -> Check:
    """The first fault, and how many there are, or what is fine."""
    if not faults:
        return Check(name, True, fine)
    more = f" (and {len(faults) - 1} more)" if faults[1:] else ""
    return Check(name, False, faults[0] + more, remedy)


def _ended(outcome: Outcome, excused: str | None) -> Check:
    if outcome.stopped:
        return Check(
            "run",
            None,
            f"{outcome.fault.message}: how many it makes in all is not written as 512 in its text; what comes after "
            "them (the count of files, the archive) was not seen: --full runs all",
        )
    if outcome.fault is None:
        return Check("run", True, f"ended after {format_duration(outcome.end_s - outcome.start_s)}")
    where = f" at {outcome.fault.where}" if outcome.fault.where else ""
    remedy = excused or REMEDIES[outcome.fault.kind](outcome)
    return Check("run", None if excused else False, f"{outcome.fault.message}{where}", remedy)


def _crash_remedy(outcome: Outcome) -> str:
    message = outcome.fault.message
    if name := missing_module(outcome):
        return f"Kaggle's image has no {name}, and the internet is off: add it as a data set, or do without"
    if _PAIR_OF_A_DICT.search(message):
        return (
            "the competition's batches are dicts, this line takes a tuple: in the loop, "
            'for sample in loader: inputs, targets = sample["image"], sample["age_group"]'
        )
    if "Read-only" in message or "Permission denied" in message:
        return "write to /kaggle/working, /kaggle/tmp or /tmp"
    if "No space left" in message or "File too large" in message:
        return "write less: Kaggle's /kaggle/working holds 20 GB"
    return "Kaggle would show no log of it: mend it and run again"


# The starter's batch has five keys: as a pair it cannot be unpacked, by number it has nothing, its keys are texts.
_PAIR_OF_A_DICT = re.compile(
    r"too many values to unpack \(expected [2-4]|^KeyError: [01]$|KeyError: [01] \(|'str' object has no attribute 'to'"
)


def _kernel(outcome: Outcome) -> Check:
    notebook = outcome.program.notebook
    named = notebook is None or notebook.metadata.get("kernelspec", {}).get("name")
    faults = [] if named else ["the notebook names no kernel (metadata.kernelspec): Kaggle ends it at once"]
    remedy = "open it in Jupyter or on Kaggle, choose Python 3 and save it"
    return _check("kernel", faults, "a script needs none" if notebook is None else f"{named}", remedy)


REMEDIES: Mapping[str, Callable[[Outcome], str]] = {
    "crash": _crash_remedy,
    "died": lambda _: "look for memory that grows from run to run, and for native code",
    "timeout": lambda outcome: (
        "allow more with --timeout, or do less in each run"
        if outcome.saves or outcome.of("cell")
        else "look for an endless loop or a lock, or allow more with --timeout"
    ),
    "disk": lambda _: "write checkpoints only, and one archive; /kaggle/working holds 20 GB",
    "processes": lambda _: "start a fixed number of processes and wait for them",
}


def _stray_files(outcome: Outcome, folder: Path, n_models: int) -> Check:
    """A count of files fails on one too many, and with it the run: where it ended well, nothing counts them."""
    there = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    expected = {MEMBER_NAME.format(index=index).rpartition("/")[2] for index in range(n_models)}
    fits = MEMBER.match if outcome.stopped else expected.__contains__
    strange = [f"/kaggle/tmp/{name}" for name in there if not fits(name)]
    found = "nothing there: the archive is written directly" if not there else f"{len(there)} checkpoints there"
    remedy = "the starter's count of 512 files would fail on it: keep everything else elsewhere, and remove leftovers"
    check = _check("/kaggle/tmp", strange, found, remedy)
    if strange and outcome.fault is None:
        return Check(check.name, True, f"{check.found} is there, which this program does not mind", remedy)
    if not strange and (used := outcome.of("unmade")):
        remedy = 'whether Kaggle\'s machine has it is not known: os.makedirs("/kaggle/tmp", exist_ok=True) before it'
        return Check(check.name, True, f"{found}; the folder is used{outcome.at(used[0]['where'])}, not made", remedy)
    return check


def _seeds(outcome: Outcome) -> Check:
    """A generator whose last seed was the same in every run, set anew in each."""
    runs = _runs(outcome, "seed")
    last = [{(event["pid"], event["of"]): event for event in run} for run in runs]
    faults = []
    for key in last[0] if len(last) > 1 else ():
        events = [run[key] for run in last if key in run]
        if len(events) == len(last) and len({event["value"] for event in events}) == 1:
            faults.append(
                f"{key[1]} is seeded with {events[-1]['value']} in every run{outcome.at(events[-1]['where'])}"
            )
    remedy = "512 checkpoints would draw the same noise: take another seed in each run, or none"
    return _check("seeds", faults, "no generator is seeded alike in every run", remedy)


def _runs(outcome: Outcome, kind: str) -> list[list[Event]]:
    """Events of a kind between one checkpoint and the next of the same process; set-up belongs to the first run."""
    runs: dict[int, list[list[Event]]] = defaultdict(list)
    saved = {(event["pid"], event["t"]) for event in outcome.saves}
    open_runs: dict[int, list[Event]] = {}
    for event in outcome.events:
        if event["event"] == kind:
            open_runs.setdefault(event["pid"], []).append(event)
        elif (event["pid"], event["t"]) in saved:
            runs[event["pid"]].append(open_runs.pop(event["pid"], []))
    return [run for of_process in runs.values() for run in of_process]


def _reading(outcome: Outcome, n_images: int) -> Check:
    again = [event for event in outcome.saves[1:] if event["reads"] >= READ_AGAIN * n_images]
    n_processes = len({event["pid"] for event in outcome.saves})
    n_read = max((event["reads_in_all"] for event in outcome.saves), default=0)  # a run counts what others read in it
    later = len(outcome.saves) - n_processes  # runs after the first of a process, which reads the data for itself
    if n_processes > 1 and (not later or n_read < (n_processes + READ_AGAIN * later) * n_images):
        again = []
    faults = [f"{event['reads']} images are read again in one run{outcome.at(event['first_read'])}" for event in again]
    remedy = "read the data once, before the loop: reading 30,000 images 512 times takes hours"
    return _check("data", faults, "read once", remedy)


def _cached_images(outcome: Outcome) -> Check:
    prints: dict[tuple, list[str]] = defaultdict(list)
    where: dict[tuple, Event | None] = {}
    for event in outcome.saves:
        for data in event["datasets"]:
            if data["print"]:
                key = (event["pid"], data["name"], data["serial"])
                prints[key].append(data["print"])
                where[key] = data["where"]
    changed = [key for key, found in prints.items() if len(found) > 1 and len(set(found[-2:])) > 1]
    faults = [
        f"the images that {name} keeps change from run to run{outcome.at(where[pid, name, serial])}"
        for pid, name, serial in changed
    ]
    remedy = "what augments or normalises must work on a copy: the cached images are those of all later runs"
    return _check("cached images", faults, "stay as they were read", remedy)


def _inputs(outcome: Outcome) -> Check:
    largest = [event["largest"] for event in outcome.saves if event["largest"] is not None]
    fine = f"the net sees values up to {max(largest):.0f}" if largest else "no forward pass was seen"
    small = largest and max(largest) < SMALL_INPUT
    faults = [f"the net sees values of at most {max(largest):.1f}"] if small else []
    remedy = "the hidden model was trained on 0..255: do not scale or normalise the images"
    return _check("inputs", faults, fine, remedy)


def _shared_net(outcome: Outcome) -> Check:
    faults = []
    for event in outcome.saves:
        faults += [
            f"{one['module']} of the net that all runs share is replaced{outcome.at(one['where'])}"
            for one in event["replaced"]
        ]
    altered = [event["altered"] for event in outcome.saves if event["altered"]]
    if altered and not faults:
        faults.append(f"a stored net is no longer the architecture that is scored: {altered[0]}")
    remedy = "the next run starts from the replaced module: change weights in place, or work on a deep copy"
    return _check("shared net", faults, "its modules stay", remedy)


def _offline(outcome: Outcome) -> Check:
    commands = outcome.of("command")
    faults = []
    for event in outcome.of("network"):
        before = [command for command in commands if command["t"] <= event["t"]]
        if event["where"]:
            faults.append(f"{event['host']} is asked for{outcome.at(event['where'])}")
        elif before:
            faults.append(f"`{_shortened(before[-1]['text'])}` needs the internet{outcome.at(before[-1]['where'])}")
        else:
            faults.append(f"{event['host'] or event['program']} is asked for")
    remedy = "the internet is off when a submission is scored: add what is needed as a data set, or leave it out"
    check = _check("offline", list(dict.fromkeys(faults)), "no use of the network", remedy)
    if faults and (outcome.fault is None or outcome.stopped):  # as on Kaggle, it got nothing, and made its checkpoints
        return Check(check.name, True, f"{check.found}: the program goes on without it", remedy)
    return check


def _shortened(command: str) -> str:
    text = command.removeprefix("/bin/sh -c ").removeprefix("/bin/bash -c ")
    return text if len(text) < 80 else text[:77] + "..."


def _writes(outcome: Outcome) -> Check:
    faults = [f"{event['path']} is written{outcome.at(event['where'])}" for event in outcome.of("write")]
    remedy = "it would be lost: write to /kaggle/working, /kaggle/tmp or /tmp"
    return _check("writes", faults, "only below /kaggle and /tmp", remedy)


def _processes(outcome: Outcome) -> Check:
    faults = []
    for line in outcome.left:
        first_word = (line.split() or ["?"])[0].rpartition("/")[2]
        started = [event for event in outcome.of("command") if first_word in event["text"]]
        faults.append(
            f"`{_shortened(line)}` still runs at the end{outcome.at(started[-1]['where']) if started else ''}"
        )
    remedy = "wait for the processes that the notebook starts, or end them"
    return _check("processes", faults, "none left running", remedy)


def spread_check(ratio: float | None, n_models: int) -> Check:
    """ratio: spread of the confidences between the runs over that between retrained models, median over examples."""
    if ratio is None:
        return Check("spread", True, "not measured: no retrained models to compare with")
    fine = f"confidences spread {ratio:.2f} times as widely between the {n_models} runs as between retrained models"
    faults = [f"the {n_models} runs are nearly alike: {fine}"] if ratio < NEARLY_ALIKE else []
    remedy = "let each run draw its own batches, noise or initial weights"
    return _check("spread", faults, fine, remedy)


def statistics_check(reference: Statistics, found: Sequence[tuple[str, Statistics]]) -> Check:
    """BatchNorm statistics against those of retain images; the original model's own distance is allowed for."""
    faults = [
        f"{name}: {one.layer} records statistics of other inputs (off by {one.shift:.1f} standard deviations, "
        f"variance by a factor of {one.ratio:.0f})"
        for name, one in found
        if one.shift > WORST_SHIFT + 2 * reference.shift or one.ratio > WORST_RATIO * reference.ratio
    ]
    worst = max((max(one.shift, one.ratio) for _, one in found), default=1.0)
    remedy = "let the net see unchanged retain images in training mode before it is stored; do not reset its statistics"
    return _check("BatchNorm", faults, f"statistics fit the data (within a factor of {worst:.1f})", remedy)


def time_check(projection: Projection | None, least: float = 1.0) -> Check:
    """least: to what share of its time the kit's plan of steps can bring a checkpoint, 1 where there is none."""
    if projection is None:
        return Check("time", None, "not projected: fewer than two checkpoints were saved")
    named = ", ".join(f"about {format_duration(seconds)} on a {name}" for name, seconds in projection.on.items())
    found = (
        f"{N_CHECKPOINTS} checkpoints of {projection.epochs:.1f} epochs on the hidden data: {named}, "
        f"{format_duration(projection.here_s)} here; the limit is {format_duration(TIME_LIMIT_S)}"
    )
    if projection.law:
        found += f"; it grows with {projection.law}, as a whole pass over one lies within each batch of the other"
    fastest = min(projection.on.values())
    shares = {name: TIME_LIMIT_S / seconds for name, seconds in projection.on.items() if seconds > TIME_LIMIT_S}
    if shares and least < min(shares.values()):
        shortened = " and ".join(f"about {share:.0%} of each on a {name}" for name, share in shares.items())
        return Check("time", True, f"{found}: the kit's plan keeps to it, with {shortened}")
    late = [name for name, seconds in projection.on.items() if seconds > TIME_LIMIT_S >= fastest]
    found += f": too long for a {late[0]}, and which it will be is not known" if late else ""
    share = TIME_LIMIT_S / fastest
    remedy = f"do {share:.0%} of it in each run; the kit's time budget plans that for you"
    if TIME_LIMIT_S < fastest < _UNSURE * TIME_LIMIT_S:
        return Check("time", None, f"{found}: too near it to be sure", remedy)
    return _check("time", [found] if fastest > TIME_LIMIT_S else [], found, remedy)


def size_check(working: Path, archive: Path, n_models: int) -> Check:
    """Projected size of what stays in /kaggle/working."""
    bytes_of = {path: path.stat().st_size for path in working.rglob("*") if path.is_file()}
    if archive not in bytes_of:
        return Check("size", True, "not projected: no archive")
    grows = sum(size for path, size in bytes_of.items() if path == archive or path.suffix in (".pth", ".pt"))
    projected = grows * N_CHECKPOINTS / n_models + sum(bytes_of.values()) - grows
    found = f"{projected / 2**30:.1f} GiB in /kaggle/working for {N_CHECKPOINTS} checkpoints; it holds 20 GiB"
    if beside := [path for path in bytes_of if path.suffix in (".pth", ".pt")]:
        found += f"; {len(beside)} checkpoints are left beside the archive, such as {beside[0].relative_to(working)}"
    if TIGHT_BYTES < projected <= DISK_LIMIT_BYTES:
        found += ", which just fits: float16 halves it"
    remedy = (
        "store float16 (state = {k: v.half() if v.is_floating_point() else v ...}), and keep checkpoints in /kaggle/tmp"
    )
    return _check("size", [found] if projected > DISK_LIMIT_BYTES else [], found, remedy)


def tables_check(sizes: Mapping[str, int]) -> Check:
    """sizes: split -> number of examples of the input tree."""
    retain, forget = sizes[SPLITS[0]], sizes[SPLITS[1]]
    found = f"{retain} images to retain, {forget} to forget"
    if forget > retain:
        found += ": the forget set is the larger one; are retain.csv and forget.csv swapped?"
    return Check("tables", True, found)


# What a participant sees, and nothing else, where one of these checks fails; the first that fails tells.
WORDS = {
    "kernel": "Notebook Threw Exception",
    "run": "Submission CSV Not Found",  # of a notebook that raises while it is scored
    "time": "Notebook Timeout",
    "size": "Submission CSV Not Found",
    "archive": "Submission CSV Not Found",
    **dict.fromkeys(("members", "tensors", "outputs"), "Submission Scoring Error"),
}
_WORDS_OF_FAULTS = {
    "timeout": "Notebook Timeout",
    **dict.fromkeys(("died", "disk", "processes"), "Notebook Exceeded Allowed Compute"),
}


def kaggles_word(checks: Sequence[Check], outcome: Outcome) -> str | None:
    """The word that Kaggle would have shown for the first check that fails so that nothing is scored; None without."""
    failed = {check.name for check in checks if check.ok is False}
    name = next((name for name in WORDS if name in failed), None)
    if name == "run" and outcome.fault is not None:
        return _WORDS_OF_FAULTS.get(outcome.fault.kind, WORDS["run"])
    return WORDS[name] if name else None


def counted(checks: Sequence[Check], word: str | None = None) -> str:
    """The last line: how many checks failed, and what could not be decided. word: Kaggle's own for it."""
    failed = sum(check.ok is False for check in checks)
    open_ = [check.name for check in checks if check.ok is None]
    parts = [f"{failed} of {len(checks)} checks failed"] if failed else []
    if open_:
        parts.append(f"{'' if failed else 'no check failed, but '}not decided: {', '.join(open_)}")
    if word:
        parts.append(f'Kaggle would have shown "{word}" and no more')
    return "; ".join(parts) or "Kaggle would take it"
