"""Cells, and their two forms: a notebook, and a script in the percent format.

In a script a line `# %%` begins a code cell, `# %% [markdown]` a text cell.
"""

from collections.abc import Sequence

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
_LONG = 200  # lines of a cell that is folded
Cell = tuple[str, str]  # "code" or "markdown", and its text


def cells_of(script: str) -> list[Cell]:
    """The cells of a script in the percent format."""
    cells = []
    for block in ("\n" + script).split("\n# %%")[1:]:
        head, _, body = block.partition("\n")
        if "[markdown]" in head:
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()]
            cells.append(("markdown", "\n".join(lines)))
        else:
            cells.append(("code", body.strip()))
    return cells


def notebook_of(cells: Sequence[Cell]) -> nbformat.NotebookNode:
    """A notebook of these cells, without outputs; the same bytes each time."""
    notebook = new_notebook(metadata={"kernelspec": KERNEL})
    for number, (kind, source) in enumerate(cells):
        cell = new_code_cell(source) if kind == "code" else new_markdown_cell(source)
        cell.id = f"cell-{number}"
        if source.count("\n") > _LONG:
            cell.metadata = {"_kg_hide-input": True, "jupyter": {"source_hidden": True}}  # Kaggle, JupyterLab
        notebook.cells.append(cell)
    return notebook


def script_of(cells: Sequence[Cell]) -> str:
    """The same cells as a script."""
    parts = []
    for kind, source in cells:
        if kind == "markdown":
            lines = ["# %% [markdown]", *(f"# {line}".rstrip() for line in source.splitlines())]
            parts.append("\n".join(lines))
        else:
            parts.append(f"# %%\n{source.rstrip()}")
    return "\n\n".join(parts) + "\n"
