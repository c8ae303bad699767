"""The public names of a package: functions that are imported when they are first asked for, so that importing the
package costs nothing."""

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def publish(package: str, homes: Mapping[str, str]) -> None:
    """Let `package.NAME` be NAME of the module `homes[NAME]`.

    Also where a submodule has the same name: importing it would otherwise put the module in the function's place.
    """
    names = {name: property(_getter(name, home), _setter(name)) for name, home in homes.items()}
    sys.modules[package].__class__ = type("Package", (ModuleType,), names)


def _getter(name: str, home: str) -> Any:
    return lambda package: getattr(import_module(home), name)


def _setter(name: str) -> Any:
    def put(package: ModuleType, value: Any) -> None:
        if not isinstance(value, ModuleType):
            raise AttributeError(f"{package.__name__}.{name} cannot be replaced")

    return put
