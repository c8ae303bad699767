"""A method as a submission for Kaggle: the texts of its cells, as a notebook, a script or a cell to paste."""

import ast
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kit import __version__
from kit.competition import INPUT_DIR
from kit.errors import InputError
from kit.methods import Method, get_method
from notebooks.flatten import Import, Module, flatten, parse_module, reach
from notebooks.percent import Cell

KIT_MODULE, METHOD_MODULE = "unlearning_kit", "unlearning_method"  # where worker processes import them from
CHECKPOINT = [
    ("kit.competition", "read_tree"),
    ("kit.competition", "load_original"),
    ("kit.emit", "make_one"),
    ("kit.methods", "method_of"),
    ("kit.submission", "verify"),
    ("kit.submission", "verdict_lines"),
]
RUN = [("kit.submit", "submit")]
RUN_ON_ALL = [("kit.workers", "submit_on_all_gpus")]
SETTINGS = """SETTINGS = {
    "n_checkpoints": 512,
    "limit": "7h45m",  # of Kaggle's 8 h: the rest is for starting up and for storing the output
    "seed": 0,
    "dtype": torch.float16,  # 11.5 GB in all; float32 would need 23 of the 20 GB there are
}
"""


@dataclass(frozen=True)
class Source:
    """A method's file, what it needs, and the text of its cell. function: the name that the cell defines."""

    name: str
    function: str
    summary: str
    module: Module
    text: str

    @property
    def roots(self) -> list[Import]:
        """What it imports from the kit."""
        return list(self.module.kit_imports.values())


def source_of(spec: str, settings: Sequence[str] = ()) -> Source:
    """The source of a method (a name, or file.py[:function]), hyper-parameters set by `name=value` texts.

    Raises InputError for what `get_method` refuses and for a file that needs others beside it.
    """
    method = get_method(spec, settings)
    file = Path(spec.rpartition(":")[0] if ".py:" in spec else spec)
    own = file.suffix == ".py"
    path = file if own else Path(find_spec(method.function.__module__).origin)
    module = parse_module(path.stem, path.read_text(encoding="utf-8"), path)
    for item in module.imports.values() if own else ():
        beside = path.parent / (item[0].partition(".")[0] + ".py")
        if beside.exists():
            raise InputError(f"{path}: imports {beside.name}, which does not travel: put what it needs into one file")
    function = method.function.__name__
    summary = module.summary or f"The function `{function}` of {path.name}."
    return Source(method.name.replace(":", "_"), function, summary, module, _method_text(module, method))


def notebook_cells(source: Source) -> list[Cell]:
    """Explanation, kit, method, run."""
    checkpoint = reach([*_imports(CHECKPOINT), *source.roots], source.module)
    everything = reach([*_imports(CHECKPOINT + RUN), *source.roots], source.module)
    run = flatten(everything.beyond(checkpoint), "what makes a submission of checkpoints; settings first")
    head, _, body = run.partition("\n\n# ----")
    call = f'submit({source.function}, "{source.name}", **SETTINGS)'
    return [
        ("markdown", _explanation(source)),
        ("code", flatten(checkpoint, f"what makes and checks checkpoints of {source.name}")),
        ("markdown", "## The method\n\nThe only cell to edit."),
        ("code", source.text),
        ("markdown", "## The run\n\nSettings on top; below them nothing is to be edited."),
        ("code", f"{head}\n\n{SETTINGS}\n# ----{body}\n{call}"),
    ]


def writefile_cells(source: Source) -> list[Cell]:
    """The same with kit and method in files of their own, which one process per GPU imports."""
    everything = reach([*_imports(CHECKPOINT + RUN_ON_ALL), *source.roots], source.module)
    names = ", ".join(sorted(source.module.kit_imports))
    imports = f"from {KIT_MODULE} import {names}\n" if names else ""
    title = f"what makes a submission of {source.name} on several GPUs"
    call = f'submit_on_all_gpus({source.function}, "{source.name}", **SETTINGS)'
    run_imports = [f"from {KIT_MODULE} import submit_on_all_gpus", f"from {METHOD_MODULE} import {source.function}"]
    several = "Kit and method are written to files, which one process per GPU imports."
    return [
        ("markdown", f"{_explanation(source)}\n\n{several}"),
        ("code", f"%%writefile {KIT_MODULE}.py\n{flatten(everything, title)}"),
        ("markdown", "## The method\n\nThe only cell to edit."),
        ("code", f"%%writefile {METHOD_MODULE}.py\n{_with_imports(source.text, imports)}"),
        ("markdown", "## The run"),
        ("code", "\n".join(["import torch", *run_imports, "", SETTINGS, call])),
    ]


def paste_text(source: Source) -> str:
    """Kit and method in one cell for an existing notebook with a loop of its own; it defines and does nothing."""
    checkpoint = reach([*_imports(CHECKPOINT), *source.roots], source.module)
    kit = flatten(checkpoint, f"what makes and checks checkpoints of {source.name}")
    arguments = "net, retain_loader, forget_loader, val_loader"
    seed = ", seed=checkpoint_seed(0, i)" if "seed" in source.text else ""
    usage = [
        "# In the loop, for run i and with the original weights in net:",
        f"#     {source.function}({arguments}{seed})",
        "# After the archive is written:",
        '#     print("\\n".join(verdict_lines(verify("/kaggle/working/submission.zip", 512, original_state_dict))))',
    ]
    return "\n".join([kit, "# ---- the method", "", source.text, *usage]) + "\n"


def kernel_metadata(source: Source, code_file: str, user: str) -> dict[str, Any]:
    """What `kaggle kernels push` reads beside the notebook: GPU on, internet off, the competition's data."""
    slug = f"unlearning-{source.name.replace('_', '-')}"
    return {
        "id": f"{user}/{slug}",
        "title": slug.replace("-", " "),
        "code_file": code_file,
        "language": "python",
        "kernel_type": "notebook" if code_file.endswith(".ipynb") else "script",
        "is_private": True,
        "enable_gpu": True,
        "enable_internet": False,
        "dataset_sources": [],
        "competition_sources": [INPUT_DIR.name],
        "kernel_sources": [],
    }


def _explanation(source: Source) -> str:
    return textwrap.dedent(
        f"""\
        # {source.name}: a submission to the NeurIPS 2023 machine unlearning competition

        {source.summary}

        Three cells of code: the kit, which makes a checkpoint; the method, which is yours to edit; the run, which makes
        512 of them in time, checks `submission.zip` and says so in its last line. On Kaggle switch the GPU on and the
        internet off, and add the competition's data. Where only its public stand-in is mounted the notebook writes an
        empty archive and ends: the hidden data comes with the scoring run.

        Made by the Unlearning Submission Kit {__version__} (`python -m notebooks.build`)."""
    )


def _imports(roots: Sequence[tuple[str, str]]) -> list[Import]:
    return [(module, name, name) for module, name in roots]


def _with_imports(text: str, imports: str) -> str:
    """`imports` after the docstring of `text`."""
    tree = ast.parse(text)
    documented = ast.get_docstring(tree) is not None
    at = tree.body[0].end_lineno if documented else 0
    lines = text.splitlines()
    return "\n".join([*lines[:at], *([""] if at else []), *imports.splitlines(), *lines[at:]]) + "\n"


def _method_text(module: Module, method: Method) -> str:
    """The file without its imports from the kit and what it does as a program; settings as new defaults."""
    text = module.path.read_text(encoding="utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    for node, value in sorted(_new_defaults(tree, method), key=lambda pair: -pair[0].col_offset):
        line = lines[node.lineno - 1].encode()
        lines[node.lineno - 1] = (line[: node.col_offset] + repr(value).encode() + line[node.end_col_offset :]).decode()
    for node in reversed(tree.body):
        from_kit = isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "kit"
        if from_kit or (isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"):
            del lines[node.lineno - 1 : node.end_lineno]
    return re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines).strip()) + "\n"


def _new_defaults(tree: ast.Module, method: Method) -> list[tuple[ast.expr, Any]]:
    """The nodes of defaults in the method's signature that its settings replace, with the values."""
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == method.function.__name__]
    if method.hyper and not functions:
        raise InputError(f"{method.name}: its function is not written in the file: change its defaults there")
    if not functions:
        return []
    arguments = functions[0].args
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = [*zip(reversed(positional), reversed(arguments.defaults), strict=False)]
    pairs += [(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None]
    if long := [argument.arg for argument, d in pairs if argument.arg in method.hyper and d.lineno != d.end_lineno]:
        raise InputError(f"{method.name}: the default of {long[0]} is longer than a line: change it in the file")
    return [(default, method.hyper[argument.arg]) for argument, default in pairs if argument.arg in method.hyper]
