"""Methods in a folder outside the project: where LOCAL_EVAL_METHODS names one, each of its files is found by its name.

A file counts where it defines `unlearning` or `unlearn`; others beside it, whose functions it imports, do not.
"""

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from kit.errors import InputError
from kit.methods import Method, get_method, method_names
from kit.methods.shared.mixture import PREFIX, read_mixture

VARIABLE = "LOCAL_EVAL_METHODS"
_IS_METHOD = re.compile(r"^(def (unlearning|unlearn)\b|(unlearning|unlearn) *=)", re.MULTILINE)


def own_methods() -> dict[str, Path]:
    """Name -> file of the methods in the folder; none where no folder is named."""
    if not (text := os.environ.get(VARIABLE)):
        return {}
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise InputError(f"{VARIABLE}={text}: is no folder: name the one that holds your methods, or unset it")
    files = sorted(folder.glob("*.py"))
    found = {file.stem: file for file in files if _IS_METHOD.search(file.read_text(errors="replace"))}
    if taken := sorted(found.keys() & set(method_names())):
        raise InputError(f"{found[taken[0]]}: {taken[0]} is a method of the kit: give the file another name")
    return found


def all_method_names() -> list[str]:
    """The names of the kit's methods and of those in the folder."""
    return sorted([*method_names(), *own_methods()])


def find_method(spec: str, settings: Iterable[str] = ()) -> Method:
    """As `kit.methods.get_method`, of the folder's methods too, also in a mixture."""
    own = own_methods()
    if spec.startswith(PREFIX):
        parts = [f"{own.get(name, name)}={weight}" for name, weight in read_mixture(spec)]
        return get_method(f"{PREFIX}{', '.join(parts)})", settings)
    strange = spec.isidentifier() and spec not in own and spec not in method_names()
    if strange and (close := get_close_matches(spec, own, n=1)):
        raise InputError(f"method {spec!r}: unknown: did you mean {close[0]}, in {own[close[0]].parent}?")
    return get_method(str(own.get(spec, spec)), settings)
