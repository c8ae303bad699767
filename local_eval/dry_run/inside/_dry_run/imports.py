"""Functions called right after a module was imported for the first time."""

import importlib.abc
import sys
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType

Hook = Callable[[ModuleType], object]


def after_import(parts: Iterable[Mapping[str, Hook]]) -> None:
    """Call each part[name](module), in the order of the parts, when module `name` has been executed; at once where it
    is there already."""
    hooks: dict[str, list[Hook]] = {}
    for part in parts:
        for name, hook in part.items():
            hooks.setdefault(name, []).append(hook)
    for name in list(hooks):
        if name in sys.modules:
            for hook in hooks.pop(name):
                hook(sys.modules[name])
    sys.meta_path.insert(0, _Finder(hooks))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, hooks: dict[str, list[Hook]]):
        self.hooks = hooks

    def find_spec(self, name, path=None, target=None):
        hooks = self.hooks.pop(name, None)
        if hooks is None:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                spec.loader = _Loader(spec.loader, hooks)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """The module's own loader, followed by the hooks."""

    def __init__(self, loader, hooks: list[Hook]):
        self.loader, self.hooks = loader, hooks

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        for hook in self.hooks:
            hook(module)

    def __getattr__(self, name: str):
        return getattr(self.loader, name)
