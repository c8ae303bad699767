"""The notebooks that are kept here, and a method as files for Kaggle: what `python -m notebooks.build` does."""

import argparse
import json
import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from kit.errors import InputError
from local_eval.dry_run.judge import dry_run, lines_of
from local_eval.dry_run.program import read_program
from local_eval.dry_run.stand_in import stand_in
from local_eval.unlearned import file_name
from notebooks.build import FORMS, USER
from notebooks.percent import Cell, cells_of, notebook_of
from notebooks.submission import (
    KIT_MODULE,
    Source,
    attached_cells,
    cell_text,
    data_set_metadata,
    data_set_of,
    kernel_metadata,
    notebook_cells,
    script_text,
    source_of,
    whole_kit_text,
)

FOLDER = Path(__file__).parent
SUBMISSIONS = ("finetune",)
N_EXECUTED = 8  # checkpoints that a kept submission makes when it is executed
OUTPUTS = (
    f"The outputs below are those of a dry run (`python -m local_eval dry-run`) on synthetic images with {N_EXECUTED} "
    "checkpoints instead of 512."
)
METADATA_NAME = "kernel-metadata.json"  # what `kaggle kernels push` looks for


@dataclass(frozen=True)
class Kept:
    """A notebook of this folder: where it is, its cells, and what comes beside it."""

    path: Path
    cells: Sequence[Cell]
    metadata: str | None = None  # kernel-metadata.json of a submission


def kept() -> list[Kept]:
    """Every notebook of this folder as a build makes it."""
    scripts = [path for path in sorted(FOLDER.glob("*.py")) if path.read_text().startswith("# %%")]
    found = [Kept(path.with_suffix(".ipynb"), cells_of(path.read_text())) for path in scripts]
    for name in SUBMISSIONS:
        (kind, explanation), *others = notebook_cells(source_of(name))
        cells = [(kind, f"{explanation}\n\n{OUTPUTS}"), *others]
        path = FOLDER / "submissions" / name / f"{name}.ipynb"
        found.append(Kept(path, cells, kernel_metadata(name, path.name, USER)))
    return found


def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Run every cell in a fresh kernel that starts in the project's top folder."""
    client = NotebookClient(
        notebook, timeout=1800, resources={"metadata": {"path": str(FOLDER.parent)}}, record_timing=False
    )
    return client.execute()


def execute_submission(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """Run a submission as a dry run; the notebook with its outputs. InputError where Kaggle would not take it."""
    data = stand_in("synthetic", FOLDER.parent / "runs", n_models=0, progress=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        nbformat.write(notebook, path)
        result = dry_run(read_program(path), data, N_EXECUTED, score=False)
    if result.exit_code:
        raise InputError(f"{name}: " + "; ".join(lines_of(result)))
    return with_outputs(notebook, result.outcome.notebook)


def with_outputs(notebook: nbformat.NotebookNode, executed: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """`notebook` with the outputs of another that has as many cells of code."""
    notebook = nbformat.from_dict(notebook)
    cells, others = ([cell for cell in one.cells if cell.cell_type == "code"] for one in (notebook, executed))
    if len(cells) != len(others):
        raise InputError(f"{len(cells)} cells of code, but {len(others)} with outputs: execute it anew")
    for cell, other in zip(cells, others, strict=True):
        cell.outputs, cell.execution_count = other.outputs, other.execution_count
    return notebook


def settled(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Texts as a terminal shows them in the end: pieces of a stream joined, of a progress bar its last state only."""
    notebook = nbformat.from_dict(notebook)
    for cell in notebook.cells:
        joined: list[nbformat.NotebookNode] = []
        for output in cell.get("outputs", []):
            if joined and output.output_type == joined[-1].output_type == "stream" and output.name == joined[-1].name:
                joined[-1].text += output.text
            else:
                joined.append(output)
        for output in joined:
            if output.output_type == "stream":
                lines = output.text.replace("\r\n", "\n").split("\n")
                output.text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
        if cell.cell_type == "code":
            cell.outputs = [one for one in joined if one.output_type != "stream" or one.text.strip()]
    return notebook


def differences(item: Kept) -> str | None:
    """What makes a committed notebook differ from a rebuild; None where nothing does."""
    name = item.path.relative_to(FOLDER)
    if not item.path.exists():
        return f"{name}: is missing"
    committed = [(cell.cell_type, cell.source) for cell in nbformat.read(item.path, as_version=4).cells]
    expected = [(cell.cell_type, cell.source) for cell in notebook_of(item.cells).cells]
    for number in range(max(len(committed), len(expected))):
        if committed[number : number + 1] != expected[number : number + 1]:
            return f"{name}: cell {number} differs from a rebuild"
    beside = item.path.with_name(METADATA_NAME)
    if item.metadata is not None and (not beside.exists() or beside.read_text() != item.metadata):
        return f"{beside.relative_to(FOLDER)}: differs from a rebuild"
    return None


def build(item: Kept, *, sources_only: bool = False) -> bool:
    """Make one notebook and execute it; with sources_only it keeps its outputs, and False says that it was equal."""
    if sources_only and differences(item) is None:
        return False
    notebook = notebook_of(item.cells)
    if sources_only:
        if not item.path.exists():
            raise InputError(f"{item.path.relative_to(FOLDER)}: is missing: build it without --sources")
        notebook = with_outputs(notebook, nbformat.read(item.path, as_version=4))
    else:
        notebook = execute(notebook) if item.metadata is None else execute_submission(notebook, item.path.name)
    write(item.path, nbformat.writes(settled(notebook)) + "\n")
    if item.metadata is not None:
        write(item.path.with_name(METADATA_NAME), item.metadata)
    return True


def write(path: Path, text: str) -> None:
    """A text file that appears whole or not at all; InputError where it cannot be written."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def files_of(source: Source, form: str, out: Path, user: str) -> dict[Path, str]:
    """The files of a method in one of the forms, the one named `out` first."""
    if form == "cell":
        return {out: cell_text(source)}
    kit = out.parent / "kit"
    beside, data_set = {}, []
    if form == "script":
        text = script_text(source)
    elif form == "notebook":
        text = _notebook_text(notebook_cells(source))
    else:
        text, data_set = _notebook_text(attached_cells(source, user)), [data_set_of(user)]
        beside = {
            kit / f"{KIT_MODULE}.py": whole_kit_text(source),
            kit / "dataset-metadata.json": data_set_metadata(user),
        }
    return {out: text, out.with_name(METADATA_NAME): kernel_metadata(source.name, out.name, user, data_set), **beside}


def user_of(given: str | None) -> str:
    """The name on Kaggle: the one given, else that which Kaggle's own client goes by, else a placeholder. InputError
    for what is no such name."""
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR") or "~/.kaggle").expanduser()
    what, name = "--user", given
    if name is None:
        what, name = "KAGGLE_USERNAME", os.environ.get("KAGGLE_USERNAME") or None
    if name is None:
        what, name = f"{folder / 'kaggle.json'}: username", _said_in(folder / "kaggle.json", "username", USER)
    if not re.fullmatch("[A-Za-z0-9_-]+", name):
        raise InputError(f"{what} {name!r}: is no name on Kaggle: give yours, as in the address kaggle.com/NAME")
    return name


def _said_in(file: Path, key: str, else_: str) -> str:
    """What a file of JSON says, where there is one that does."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))[key])
    except (OSError, ValueError, KeyError, TypeError):  # whether a client can use it is the client's to say
        return else_


def _notebook_text(cells: Sequence[Cell]) -> str:
    return nbformat.writes(notebook_of(cells)) + "\n"


def build_method(args: argparse.Namespace) -> int:
    """One method in the form that is asked for, to files or printed."""
    source, suffix = source_of(args.method, args.set), FORMS[args.form]
    if args.out is None and args.form == "cell":
        print(cell_text(source), end="")
        return 0
    name = file_name(source.name)
    out = args.out or Path("runs/submissions") / name / (name + suffix)
    if out.suffix != suffix:
        raise InputError(f"--out {out}: a {args.form} is a {suffix} file")
    user = user_of(args.user)
    files, metadata = files_of(source, args.form, out, user), out.with_name(METADATA_NAME)
    pushed = _said_in(metadata, "code_file", out.name)
    for path, text in files.items():
        write(path, text)
    print("wrote " + ", ".join(map(str, files)))
    if args.form == "cell":
        return 0
    if pushed != out.name:
        print(f"{metadata} was that of {pushed}: give each notebook a folder of its own to push both")
    steps = [f"kaggle kernels push -p {out.parent}"]
    if user == USER:
        steps.insert(0, f"build it again with --user and your name on Kaggle instead of {USER}")
    if args.form == "attached":
        kit = out.parent / "kit"
        more = files[kit / f"{KIT_MODULE}.py"] != whole_kit_text()
        again = f" (kaggle datasets version -p {kit} -m {name} where it exists: {name} needs more of the kit)"
        steps.insert(-1, f"kaggle datasets create -p {kit}{again if more else ', once'}")
    else:
        steps.insert(0, f"python -m local_eval dry-run {out}")
    print("next: " + "; then ".join(steps))
    return 0


def command(args: argparse.Namespace) -> int:
    """What `python -m notebooks.build` was asked for."""
    if args.method is not None:
        if surplus := [*args.names, *["--check"] * args.check, *["--sources"] * args.sources]:
            raise InputError(f"{surplus[0]}: --method builds one notebook: leave it out, or put --set before a setting")
        return build_method(args)
    of_method = {"set": args.set, "out": args.out, "user": args.user is not None, "form": args.form != "notebook"}
    if given := [name for name, value in of_method.items() if value]:
        raise InputError(f"--{given[0]} goes with --method: name the method to build")
    items = kept()
    if unknown := sorted(set(args.names) - {item.path.stem for item in items}):
        known = ", ".join(item.path.stem for item in items)
        raise InputError(f"{unknown[0]}: no such notebook here: there are {known}; --method builds a new one")
    items = [item for item in items if not args.names or item.path.stem in args.names]
    if args.check:
        found = [difference for item in items if (difference := differences(item))]
        print("\n".join(found) or f"{len(items)} notebooks equal a rebuild")
        return 1 if found else 0
    for item in items:
        made = build(item, sources_only=args.sources)
        print(f"{'built' if made else 'equal'} {item.path.relative_to(FOLDER)}", flush=True)
    return 0
