"""Build the notebooks from the scripts beside them, and check that the committed ones still equal a rebuild.

python -m notebooks.build            build and execute every notebook
python -m notebooks.build --check    exit code 1 where a committed notebook differs from its script

A script holds its cells in the percent format: a line `# %%` begins a code cell, `# %% [markdown]` a text cell.
"""

import argparse
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = Path(__file__).parent
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def scripts() -> list[Path]:
    """The scripts that are notebooks: those with cells."""
    return [path for path in sorted(FOLDER.glob("*.py")) if path.read_text().startswith("# %%")]


def cells_of(script: str) -> list[tuple[str, str]]:
    """(kind, source) of each cell of a script in the percent format; kind is code or markdown."""
    cells = []
    for block in script.split("# %%")[1:]:
        head, _, body = block.partition("\n")
        if "[markdown]" in head:
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()]
            cells.append(("markdown", "\n".join(lines)))
        else:
            cells.append(("code", body.strip()))
    return cells


def build(script: Path) -> nbformat.NotebookNode:
    """The notebook of a script, without outputs; the same bytes each time."""
    notebook = new_notebook(metadata={"kernelspec": KERNEL})
    for number, (kind, source) in enumerate(cells_of(script.read_text())):
        cell = new_code_cell(source) if kind == "code" else new_markdown_cell(source)
        cell.id = f"cell-{number}"
        notebook.cells.append(cell)
    return notebook


def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Run every cell in a fresh kernel that starts in the project's top folder."""
    client = NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(FOLDER.parent)}})
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day: different each time
    return notebook


def differences(script: Path) -> str | None:
    """What makes the committed notebook differ from its script; None where nothing does."""
    path = script.with_suffix(".ipynb")
    if not path.exists():
        return f"{path.name}: is missing"
    committed = [(cell.cell_type, cell.source) for cell in nbformat.read(path, as_version=4).cells]
    expected = cells_of(script.read_text())
    if committed == expected:
        return None
    pairs = zip(committed, expected, strict=False)
    cell = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), min(map(len, (committed, expected))))
    return f"{path.name}: cell {cell} differs from {script.name}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m notebooks.build", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only; exit code 1 where one differs")
    if parser.parse_args(argv).check:
        found = [difference for script in scripts() if (difference := differences(script))]
        print("\n".join(found) or f"{len(scripts())} notebooks equal their scripts")
        return 1 if found else 0
    for script in scripts():
        nbformat.write(execute(build(script)), script.with_suffix(".ipynb"))
        print(f"built {script.with_suffix('.ipynb').name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
