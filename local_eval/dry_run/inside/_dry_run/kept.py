"""Batches that a program keeps in a list: a loop over them is as much a pass as one over their loader."""

import ast
import importlib.machinery
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import wraps

NAME = "_dry_run_kept"  # of the function that a program's loops are led through, among the builtins
_PLAIN = itertools.product


class Loops(ast.NodeTransformer):
    """`for batch in batches` becomes `for batch in _dry_run_kept(batches)`, within enumerate and tqdm too."""

    def visit_For(self, node: ast.For | ast.comprehension) -> ast.For | ast.comprehension:
        self.generic_visit(node)
        node.iter = _led_through(node.iter)
        return node

    visit_comprehension = visit_For


def with_loops(source: str | bytes, path: str) -> ast.Module:
    """A script's or a module's syntax tree, its loops led through."""
    return Loops().visit(ast.parse(source, path))


def watch_modules(is_own: Callable[[str], bool]) -> None:
    """Do so in modules whose file is the program's own."""
    loader = importlib.machinery.SourceFileLoader
    plain = loader.source_to_code

    @wraps(plain)
    def source_to_code(self, data, path, **options):
        return plain(self, with_loops(data, path) if is_own(str(path)) else data, path, **options)

    loader.source_to_code = source_to_code


def _led_through(iterable: ast.expr) -> ast.expr:
    if isinstance(iterable, ast.Name | ast.Attribute | ast.Subscript):
        call = ast.Call(ast.Name(NAME, ast.Load()), [iterable], [])
        return ast.fix_missing_locations(ast.copy_location(call, iterable))
    if isinstance(iterable, ast.Call) and ast.unparse(iterable.func).rpartition(".")[2] in ("enumerate", "tqdm"):
        iterable.args[:1] = map(_led_through, iterable.args[:1])
    return iterable


class Batches:
    """Which loader a tensor came from, by its first tensor that of a batch."""

    def __init__(self):
        self._tensors: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # id -> tensor
        self._loaders: dict[int, tuple[int, int]] = {}

    def note(self, batch, loader: tuple[int, int]) -> None:
        tensor = _first_tensor(batch)  # of a batch that is one tensor, a list would look like a batch of two
        if tensor is not None:
            self._tensors[id(tensor)], self._loaders[id(tensor)] = tensor, loader

    def loader_of(self, batch) -> tuple[int, int] | None:
        tensor = _first_tensor(batch)
        known = tensor is not None and self._tensors.get(id(tensor)) is tensor
        return self._loaders[id(tensor)] if known else None

    def of_list(self, batches) -> tuple[int, int] | None:
        """The loader whose batches these are, at least as many as a pass has: fewer do not grow with its data."""
        loader = self.loader_of(batches[0]) if type(batches) in (list, tuple) and batches else None
        if loader is None or loader != self.loader_of(batches[-1]):
            return None
        n_examples, batch_size = loader
        return loader if len(batches) >= max(1 if n_examples else 2, n_examples // batch_size) else None


def _first_tensor(batch):
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    return next((value for value in values if hasattr(value, "data_ptr")), None)


class Kept(list):
    """The same batches; run: what runs through them and notes that as a pass."""

    def __init__(self, batches: Iterable, run: Callable[[], Iterator]):
        super().__init__(batches)
        self._run = run

    def __iter__(self) -> Iterator:
        return self._run()


def product_of(kept: Callable[[list], Iterable], is_loader: Callable[[object], bool]) -> Callable[..., Iterator]:
    """itertools.product, which draws every batch first; the pairs are then one list within the other."""

    def product(*iterables, repeat=1):
        if len(iterables) != 2 or repeat != 1 or not any(map(is_loader, iterables)):
            return _PLAIN(*iterables, repeat=repeat)
        outer, inner = map(list, iterables)
        return ((a, b) for a in kept(outer) for b in kept(inner))

    return product
