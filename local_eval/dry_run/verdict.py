"""What Kaggle would have said of a dry run: one check a line, with the remedy where it fails."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kit.archive import Check
from kit.budget import format_duration
from kit.competition import MEMBER_NAME, N_CHECKPOINTS, TIME_LIMIT_S
from local_eval.dry_run.kaggle_image import PACKAGES as KAGGLE_PACKAGES
from local_eval.dry_run.outcome import MEMBER, Event, Outcome
from local_eval.dry_run.projection import Projection
from local_eval.dry_run.weights import Statistics

# The starter's 512 float32 checkpoints are 19.9 to 20.1 GiB as zip leaves them, and were taken.
DISK_LIMIT_BYTES = 20.3 * 2**30
TIGHT_BYTES = 19 * 2**30
NEARLY_ALIKE = 0.02  # spread between runs over that of retrained models
WORST_SHIFT, WORST_RATIO = 5.0, 20.0  # of BatchNorm statistics: honest methods stay below 2 and 5
SMALL_INPUT = 20.0  # images of 0..255 have larger values, normalised ones do not
READ_AGAIN = 0.5  # of the images, in one run


def program_checks(outcome: Outcome, kaggle: Path, n_models: int, n_images: int) -> list[Check]:
    """What was seen while the program ran. kaggle: the folder that stands for /kaggle; n_images: of the input tree."""
    return [
        _ended(outcome),
        _stray_files(kaggle / "tmp", n_models, any_number=outcome.stopped),
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


def _at(outcome: Outcome, place: Event | None) -> str:
    where = outcome.where(place)
    return f" at {where}" if where else ""


def _ended(outcome: Outcome) -> Check:
    if outcome.stopped:
        return Check(
            "run",
            True,
            f"{outcome.fault.message}: how many it makes in all is not written as 512 in its text; what comes after "
            "them (the count of files, the archive) was not seen: --full runs all",
        )
    if outcome.fault is None:
        return Check("run", True, f"ended after {format_duration(outcome.end_s - outcome.start_s)}")
    where = f" at {outcome.fault.where}" if outcome.fault.where else ""
    return Check("run", False, f"{outcome.fault.message}{where}", REMEDIES[outcome.fault.kind](outcome))


def _crash_remedy(outcome: Outcome) -> str:
    message = outcome.fault.message
    if missing := re.search(r"No module named '?([\w.]+)", message):
        return _missing_package(missing[1].partition(".")[0])
    if "Read-only" in message or "Permission denied" in message:
        return "write to /kaggle/working, /kaggle/tmp or /tmp"
    if "No space left" in message or "File too large" in message:
        return "write less: Kaggle's /kaggle/working holds 20 GB"
    return "Kaggle would show no log of it: mend it and run again"


def _missing_package(name: str) -> str:
    if name in KAGGLE_PACKAGES:
        package = KAGGLE_PACKAGES[name] or name
        return (
            f"no fault of the notebook: Kaggle's image has {name}, this machine has not: "
            f"python -m pip install {package}, then run the dry run again"
        )
    return f"Kaggle's image has no {name}, and the internet is off: add it as a data set, or do without"


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


def _stray_files(folder: Path, n_models: int, *, any_number: bool = False) -> Check:
    there = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    expected = {MEMBER_NAME.format(index=index).rpartition("/")[2] for index in range(n_models)}
    fits = MEMBER.match if any_number else expected.__contains__
    strange = [f"/kaggle/tmp/{name}" for name in there if not fits(name)]
    found = "nothing there: the archive is written directly" if not there else f"{len(there)} checkpoints there"
    remedy = "the starter's count of 512 files would fail on it: keep everything else elsewhere, and remove leftovers"
    return _check("/kaggle/tmp", strange, found, remedy)


def _seeds(outcome: Outcome) -> Check:
    """A generator whose last seed was the same in every run, set anew in each."""
    runs = _runs(outcome, "seed")
    last = [{(event["pid"], event["of"]): event for event in run} for run in runs]
    faults = []
    for key in last[0] if len(last) > 1 else ():
        events = [run[key] for run in last if key in run]
        if len(events) == len(last) and len({event["value"] for event in events}) == 1:
            faults.append(
                f"{key[1]} is seeded with {events[-1]['value']} in every run{_at(outcome, events[-1]['where'])}"
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
    faults = [
        f"{event['reads']} images are read again in one run{_at(outcome, event['first_read'])}" for event in again
    ]
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
        f"the images that {name} keeps change from run to run{_at(outcome, where[pid, name, serial])}"
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
            f"{one['module']} of the net that all runs share is replaced{_at(outcome, one['where'])}"
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
            faults.append(f"{event['host']} is asked for{_at(outcome, event['where'])}")
        elif before:
            faults.append(f"`{_shortened(before[-1]['text'])}` needs the internet{_at(outcome, before[-1]['where'])}")
        else:
            faults.append(f"{event['host'] or event['program']} is asked for")
    remedy = "the internet is off when a submission is scored: add what is needed as a data set, or leave it out"
    return _check("offline", list(dict.fromkeys(faults)), "no use of the network", remedy)


def _shortened(command: str) -> str:
    text = command.removeprefix("/bin/sh -c ").removeprefix("/bin/bash -c ")
    return text if len(text) < 80 else text[:77] + "..."


def _writes(outcome: Outcome) -> Check:
    faults = [f"{event['path']} is written{_at(outcome, event['where'])}" for event in outcome.of("write")]
    remedy = "it would be lost: write to /kaggle/working, /kaggle/tmp or /tmp"
    return _check("writes", faults, "only below /kaggle and /tmp", remedy)


def _processes(outcome: Outcome) -> Check:
    faults = []
    for line in outcome.left:
        first_word = (line.split() or ["?"])[0].rpartition("/")[2]
        started = [event for event in outcome.of("command") if first_word in event["text"]]
        faults.append(
            f"`{_shortened(line)}` still runs at the end{_at(outcome, started[-1]['where']) if started else ''}"
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


def time_check(projection: Projection | None) -> Check:
    if projection is None:
        return Check("time", True, "not projected: fewer than two checkpoints were saved")
    named = ", ".join(f"about {format_duration(seconds)} on a {name}" for name, seconds in projection.on.items())
    found = (
        f"{N_CHECKPOINTS} checkpoints of {projection.epochs:.1f} epochs on the hidden data: {named}, "
        f"{format_duration(projection.here_s)} here; the limit is {format_duration(TIME_LIMIT_S)}"
    )
    fastest = min(projection.on.values())
    late = [name for name, seconds in projection.on.items() if seconds > TIME_LIMIT_S >= fastest]
    found += f": too long for a {late[0]}, and which of the two it will be is not known" if late else ""
    share = TIME_LIMIT_S / fastest
    remedy = f"do {share:.0%} of it in each run; the kit's time budget plans that for you"
    return _check("time", [found] if fastest > TIME_LIMIT_S else [], found, remedy)


def size_check(working: Path, archive: Path, n_models: int) -> Check:
    """Projected size of what stays in /kaggle/working."""
    bytes_of = {path: path.stat().st_size for path in working.rglob("*") if path.is_file()}
    if archive not in bytes_of:
        return Check("size", True, "not projected: no archive")
    grows = sum(size for path, size in bytes_of.items() if path == archive or path.suffix in (".pth", ".pt"))
    projected = grows * N_CHECKPOINTS / n_models + sum(bytes_of.values()) - grows
    found = f"{projected / 2**30:.1f} GiB in /kaggle/working for {N_CHECKPOINTS} checkpoints; it holds 20 GiB"
    if TIGHT_BYTES < projected <= DISK_LIMIT_BYTES:
        found += ", which just fits: float16 halves it"
    remedy = (
        "store float16 (state = {k: v.half() if v.is_floating_point() else v ...}), and keep checkpoints in /kaggle/tmp"
    )
    return _check("size", [found] if projected > DISK_LIMIT_BYTES else [], found, remedy)


def counted(checks: Sequence[Check]) -> str:
    """The last line: how many checks failed."""
    failed = Counter(check.ok for check in checks)[False]
    return "Kaggle would take it" if not failed else f"{failed} of {len(checks)} checks failed"
