"""Build notebooks: a method as a submission for Kaggle, and the notebooks that are kept here.

python -m notebooks.build --method finetune --set lr=0.002 --out submission/finetune.ipynb
python -m notebooks.build            build and execute every notebook kept here
python -m notebooks.build --check    exit code 1 where one differs from a rebuild

Those kept here come from the scripts beside them (percent format) or, as submissions, from the methods of the kit.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from kit.cli import run as run_command
from kit.errors import InputError
from local_eval.dry_run.command import dry_run, lines_of
from local_eval.dry_run.program import read_program
from local_eval.dry_run.stand_in import stand_in
from notebooks.percent import Cell, cells_of, notebook_of, script_of
from notebooks.submission import Source, kernel_metadata, notebook_cells, paste_text, source_of, writefile_cells

FOLDER = Path(__file__).parent
FORMS: dict[str, Callable[[Source], Sequence[Cell]]] = {
    "notebook": notebook_cells,
    "script": notebook_cells,
    "writefile": writefile_cells,
}
SUBMISSIONS = {  # name of the folder -> method, settings, form
    "finetune": ("finetune", [], "notebook"),
    "finetune_multi_gpu": ("finetune", [], "writefile"),
    "random_perturbation": ("random_perturbation", [], "notebook"),
    "l2_penalty": ("l2_penalty", [], "notebook"),
    "stochastic_teacher": ("stochastic_teacher", [], "notebook"),
}
N_EXECUTED = 8  # checkpoints that a kept submission makes when it is executed


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
    for name, (method, settings, form) in SUBMISSIONS.items():
        source = source_of(method, settings)
        path = FOLDER / "submissions" / name / f"{name}.ipynb"
        found.append(Kept(path, FORMS[form](source), _metadata(source, path.name, "your-name")))
    return found


def _metadata(source: Source, code_file: str, user: str) -> str:
    return json.dumps(kernel_metadata(source, code_file, user), indent=2) + "\n"


def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Run every cell in a fresh kernel that starts in the project's top folder."""
    client = NotebookClient(
        notebook, timeout=1800, resources={"metadata": {"path": str(FOLDER.parent)}}, record_timing=False
    )
    return client.execute()


def execute_submission(path: Path) -> nbformat.NotebookNode:
    """Run a submission as a dry run; the notebook with its outputs. InputError where Kaggle would not take it."""
    data = stand_in("synthetic", FOLDER.parent / "runs", n_models=0, workers=None, progress=True)
    result = dry_run(read_program(path), data, N_EXECUTED, score=False)
    if result.exit_code:
        raise InputError(f"{path}: " + "; ".join(lines_of(result)))
    notebook = nbformat.read(path, as_version=4)
    executed = [cell for cell in result.outcome.notebook.cells if cell.cell_type == "code"]
    for cell, ran in zip((cell for cell in notebook.cells if cell.cell_type == "code"), executed, strict=True):
        cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
    return notebook


def differences(item: Kept) -> str | None:
    """What makes a committed notebook differ from a rebuild; None where nothing does."""
    name = item.path.relative_to(FOLDER)
    if not item.path.exists():
        return f"{name}: is missing"
    committed = [(cell.cell_type, cell.source) for cell in nbformat.read(item.path, as_version=4).cells]
    expected = [(kind, source.strip("\n")) for kind, source in item.cells]
    for number in range(max(len(committed), len(expected))):
        if committed[number : number + 1] != expected[number : number + 1]:
            return f"{name}: cell {number} differs from a rebuild"
    beside = item.path.with_name("kernel-metadata.json")
    if item.metadata is not None and (not beside.exists() or beside.read_text() != item.metadata):
        return f"{beside.relative_to(FOLDER)}: differs from a rebuild"
    return None


def build_kept(names: Sequence[str]) -> None:
    """Build and execute the notebooks of these names, all of them without names."""
    for item in kept():
        if names and item.path.stem not in names:
            continue
        item.path.parent.mkdir(parents=True, exist_ok=True)
        notebook = notebook_of(item.cells)
        if item.metadata is None:
            notebook = execute(notebook)
        else:
            nbformat.write(notebook, item.path)
            item.path.with_name("kernel-metadata.json").write_text(item.metadata)
            notebook = execute_submission(item.path)
        nbformat.write(notebook, item.path)
        print(f"built {item.path.relative_to(FOLDER)}")


def build_method(args: argparse.Namespace) -> int:
    """One method in the form that is asked for, to a file or printed."""
    source = source_of(args.method, args.set)
    if args.form == "cell":
        text = paste_text(source)
    elif args.form == "script":
        text = script_of(notebook_cells(source))
    else:
        text = nbformat.writes(notebook_of(FORMS[args.form](source))) + "\n"
    suffix = ".py" if args.form in ("script", "cell") else ".ipynb"
    if args.out is None and args.form == "cell":
        print(text, end="")
        return 0
    out = args.out or Path("runs/submissions") / source.name / (source.name + suffix)
    if out.suffix != suffix:
        raise InputError(f"--out {out}: a {args.form} is a {suffix} file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
        written = [out]
        if args.form != "cell":
            written.append(out.with_name("kernel-metadata.json"))
            written[1].write_text(_metadata(source, out.name, args.user))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from error
    print("wrote " + ", ".join(map(str, written)))
    if args.form != "cell":
        print(f"next: python -m local_eval dry-run {out}; then kaggle kernels push -p {out.parent}")
    return 0


def _command(args: argparse.Namespace) -> int:
    if args.method:
        return build_method(args)
    if not args.check:
        build_kept(args.names)
        return 0
    items = kept()
    found = [difference for item in items if (difference := differences(item))]
    print("\n".join(found) or f"{len(items)} notebooks equal a rebuild")
    return 1 if found else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m notebooks.build", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="notebooks kept here (all)")
    parser.add_argument("--check", action="store_true", help="compare only; exit code 1 where one differs")
    parser.add_argument("--method", help="a name, or file.py[:function]: build its submission instead")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a hyper-parameter")
    parser.add_argument("--form", choices=(*FORMS, "cell"), default="notebook", help="writefile: for several GPUs")
    parser.add_argument("--out", type=Path, help="file to write (below runs/submissions; a cell is printed)")
    parser.add_argument("--user", default="your-name", help="your name on Kaggle, for kernel-metadata.json")
    parser.set_defaults(command=_command)
    return run_command(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
