"""The number of checkpoints in a program's own text: where 512 means it, and a smaller number in its place.

512 is also the width of ResNet-18's last stage. A literal is taken for the number of checkpoints where it bounds a
loop that makes checkpoints, where files are counted against it, or where it is given to a name that is used like that;
everything else is left alone.
"""

import ast
import operator
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kit.competition import N_CHECKPOINTS
from local_eval.dry_run.program import Code, Program

_COUNT_NAME = re.compile(r"(^|_)(n|num|number|total|max)?_?(of_)?(checkpoints?|ckpts?|models?|runs?|unlearned)$", re.I)
_WIDTH_NAME = re.compile(
    r"batch|(^|_)bs$|width|hidden|dims?($|_)|channel|feature|embed|(^|_)size|planes|seed|chunk|buffer|in_f|out_f", re.I
)
_WIDTH_CALL = re.compile(
    r"^(nn|F|functional)$|Linear|Conv|Norm|Embedding|Pool|^(randn|rand|zeros|ones|empty|full|view|reshape|expand|"
    r"resize|Resize|DataLoader|flatten|unflatten|normal_|uniform_)$"
)
_FILES = re.compile(r"listdir|glob|iterdir|scandir|namelist|infolist|walk|\.pth|checkpoint|ckpt|/kaggle/tmp", re.I)
_MAKING = re.compile(r"unlearn|retrain_model|make_checkpoint", re.I)
_SAVING = {"save", "save_file", "savez", "writestr", "dump"}
_FOLDED = {
    ast.Mult: operator.mul,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
}
_LARGEST = 10**6  # of the numbers that are reckoned with
_DRAWN = {"choice", "choices", "sample", "integers", "randint", "random_integers", "permutation", "randperm"}
_RANGES = {"range", "trange", "arange", "tnrange", "islice", "linspace"}


@dataclass(frozen=True)
class Change:
    """One literal that is another number during the dry run; column and end_column count bytes."""

    number: int | None  # of the code cell
    line: int
    column: int
    end_column: int
    old: str
    new: int


def reduce(program: Program, n_models: int) -> tuple[Program, list[Change]]:
    """The program with every 512 that means the number of checkpoints replaced, and what was replaced.

    Texts keep their lines and columns. Loops that share the checkpoints between them, such as range(246) and
    range(246, 512), or those of two workers over range(r * 256, (r + 1) * 256), are scaled together.
    """
    trees = [(code, tree) for code in program.codes if (tree := code.tree()) is not None]
    finder = _Finder([tree for _, tree in trees])
    changes = []
    for code, tree in trees:
        for node, value in finder.counts_in(tree, n_models):
            line = code.lines[node.lineno - 1].encode()
            old = line[node.col_offset : node.end_col_offset].decode()
            changes.append(Change(code.number, node.lineno, node.col_offset, node.end_col_offset, old, value))
    codes = tuple(_rewritten(code, [c for c in changes if c.number == code.number]) for code in program.codes)
    return program.with_codes(codes), changes


def _rewritten(code: Code, changes: Iterable[Change]) -> Code:
    lines = code.lines
    for change in sorted(changes, key=lambda change: -change.column):
        line = lines[change.line - 1].encode()
        new = str(change.new).ljust(len(change.old)).encode()
        lines[change.line - 1] = (line[: change.column] + new + line[change.end_column :]).decode()
    return Code(code.number, "\n".join(lines))


class _Finder:
    """What a program's names and loops say about its literals."""

    def __init__(self, trees: list[ast.Module]):
        self.parents = {
            child: node for tree in trees for node in ast.walk(tree) for child in ast.iter_child_nodes(node)
        }
        self.nodes = [node for tree in trees for node in ast.walk(tree)]
        self.functions = {n.name: n for n in self.nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
        self.values: dict[str, list[ast.expr]] = defaultdict(list)  # name -> expressions it is given
        for name, value in self._bindings():
            self.values[name] += _branches(value)
        self.making = self._making_functions()
        self.used = self._used_as_counts()
        self.splits = self._splits()
        self.shares = self._shares()

    def counts_in(self, tree: ast.Module, n_models: int) -> Iterator[tuple[ast.expr, int]]:
        """Literals of the tree that mean the number of checkpoints, and what takes their place."""
        named = {id(v) for name, values in self.values.items() if name in self.used for v in values}
        within: set[int] = set()  # parts of an expression that is replaced as a whole
        for node in ast.walk(tree):
            if id(node) in within:
                continue
            if _is_512(node) and (id(node) in named or self._is_count(node)):
                within |= {id(part) for part in ast.walk(node)}
                yield node, n_models
            elif self._is_share(node):
                yield node, max(1, node.value * n_models // N_CHECKPOINTS)
            elif self._is_split(node):
                yield node, min(max(1, round(node.value * n_models / N_CHECKPOINTS)), max(1, n_models - 1))

    def _is_split(self, node: ast.AST) -> bool:
        number = isinstance(node, ast.Constant) and type(node.value) is int and node.value in self.splits
        return number and self._range_of(node) is not None and self._makes(self._statement(node))

    def _is_share(self, node: ast.AST) -> bool:
        """Whether a number is what one of several workers makes, in its loop or beside the worker's own number."""
        number = isinstance(node, ast.Constant) and type(node.value) is int and node.value in self.shares
        return number and (self._is_factor(node) or self._bounds_making(node))

    def _is_factor(self, node: ast.AST) -> bool:
        """256 in worker * 256."""
        parent = self.parents.get(node)
        if not (isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Mult)) or self._feeds_width(parent):
            return False
        return _folded(parent.right if node is parent.left else parent.left) is None

    def _bounds_making(self, node: ast.AST) -> bool:
        return self._range_of(node) is not None and self._makes(self._statement(node))

    # -- names --------------------------------------------------------------------------------------------------------

    def _bindings(self) -> Iterator[tuple[str, ast.expr]]:
        """Names and the expressions given to them: assignments, defaults, keywords, keys, arguments, options."""
        for node in self.nodes:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    yield from _pairs(target, node.value)
            elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
                yield from _pairs(node.target, node.value)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                arguments = node.args
                positional = [*arguments.posonlyargs, *arguments.args]
                for argument, default in zip(reversed(positional), reversed(arguments.defaults), strict=False):
                    yield argument.arg, default
                for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
                    if default is not None:
                        yield argument.arg, default
            elif isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and isinstance(key.value, str):
                        yield key.value, value
            elif isinstance(node, ast.Call):
                yield from self._arguments(node)

    def _arguments(self, call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
        option = next((a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)), "")
        for keyword in call.keywords:
            if keyword.arg == "default" and option.startswith("-"):
                yield option.lstrip("-").replace("-", "_"), keyword.value
            elif keyword.arg:
                yield keyword.arg, keyword.value
        function = self.functions.get(_called(call))
        if function is not None:
            names = [a.arg for a in [*function.args.posonlyargs, *function.args.args]]
            offset = 1 if names[:1] == ["self"] else 0
            yield from zip(names[offset:], call.args, strict=False)

    def _used_as_counts(self) -> set[str]:
        """Names that bound making loops or are compared with numbers of files, and names that hand them on."""
        given = {name for name, values in self.values.items() if any(self._may_be_512(v) for v in values)}
        used = {name for name in given if _COUNT_NAME.search(name)}
        for node in self.nodes:
            name = _name(node)
            if name in given and self._is_count(node):
                used.add(name)
        grown = True
        while grown:  # N = 512; run(n=N); def run(n): range(n)
            handed_on = {_name(v) for name in used for v in self.values[name] if _name(v)}
            grown = not handed_on <= used
            used |= handed_on
        return {name for name in used if not self._is_width(name)}

    def _may_be_512(self, value: ast.expr) -> bool:
        return _is_512(value) or _name(value) in self.values

    def _is_width(self, name: str) -> bool:
        """Whether a name is given to layers, batches or shapes too, so that its value has to stay."""
        if _WIDTH_NAME.search(name):
            return True
        uses = [node for node in self.nodes if _name(node) == name and isinstance(getattr(node, "ctx", None), ast.Load)]
        return any(self._feeds_width(node) for node in uses)

    def _feeds_width(self, node: ast.expr) -> bool:
        parent = self.parents.get(node)
        if isinstance(parent, ast.keyword):
            return bool(_WIDTH_NAME.search(parent.arg or ""))
        return isinstance(parent, ast.Call) and node is not parent.func and _names_a_layer(parent)

    # -- places -------------------------------------------------------------------------------------------------------

    def _is_count(self, node: ast.AST) -> bool:
        """Whether the place where a literal or name stands is one for a number of checkpoints."""
        if self._range_of(node) is not None:
            return self._makes(self._statement(node)) or self._kept_for_making(node)
        parent = self.parents.get(node)
        if self._call_around(node, _DRAWN) is not None:
            return self._kept_for_making(node)
        if isinstance(parent, ast.Compare):
            sides = [side for side in (parent.left, *parent.comparators) if side is not node]
            around = self.parents.get(parent)
            while isinstance(around, ast.BoolOp | ast.UnaryOp):
                around = self.parents.get(around)
            if isinstance(around, ast.While):
                return self._makes(around)
            return any(self._counts_files(side) or self._counts_rounds(side) for side in sides)
        return False

    def _range_of(self, node: ast.AST) -> ast.Call | None:
        """The range that a literal or name bounds."""
        return self._call_around(node, _RANGES)

    def _call_around(self, node: ast.AST, names: set[str]) -> ast.Call | None:
        """The call of one of these names that a literal or name is an argument of, in a shape or a sum too."""
        parent = self.parents.get(node)
        while isinstance(parent, ast.BinOp | ast.Tuple | ast.keyword):
            parent = self.parents.get(parent)
        if isinstance(parent, ast.Call) and _called(parent) in names and node is not parent.func:
            return parent
        return None

    def _statement(self, node: ast.AST) -> ast.AST:
        while not isinstance(node, ast.stmt):
            node = self.parents[node]
        return node

    def _makes(self, statement: ast.AST) -> bool:
        """Whether a statement, a loop with its body, makes checkpoints, itself or by what it calls."""
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and (_called(node) in _SAVING or _MAKING.search(_called(node) or "")):
                return True
            if isinstance(node, ast.Name) and (node.id in self.making or _MAKING.search(node.id)):
                return True
            if isinstance(node, ast.Attribute) and node.attr in self.making:
                return True
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _FILES.search(node.value):
                return True
        return False

    def _kept_for_making(self, node: ast.AST) -> bool:
        """ids = range(512), and later a loop over ids that makes checkpoints."""
        statement = self._statement(node)
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        names = {name for target in targets if (name := _name(target))}
        uses = [n for n in self.nodes if _name(n) in names and isinstance(getattr(n, "ctx", None), ast.Load)]
        return any(self._makes(self._statement(use)) for use in uses)

    def _making_functions(self) -> set[str]:
        making: set[str] = set()
        self.making = making
        grown = True
        while grown:
            found = {name for name, f in self.functions.items() if any(self._makes(s) for s in f.body)}
            grown = not found <= making
            making |= found
        return making

    def _counts_files(self, side: ast.expr, depth: int = 3) -> bool:
        """Whether an expression is about the files of a submission, or a name given such a one."""
        if _FILES.search(ast.unparse(side)):
            return True
        names = {_name(node) for node in ast.walk(side)} - {None}
        if any(_COUNT_NAME.search(name) for name in names):
            return True
        return depth > 0 and any(
            self._counts_files(v, depth - 1) for n in names for v in self.values[n] if v is not side
        )

    def _counts_rounds(self, side: ast.expr) -> bool:
        """Whether a name is the variable of a loop that makes checkpoints, or is counted up in one."""
        name = _name(side)
        loops = [node for node in self.nodes if isinstance(node, ast.For) and _name(node.target) == name]
        loops += [
            loop
            for loop in self.nodes
            if isinstance(loop, ast.While)
            and any(isinstance(node, ast.AugAssign) and _name(node.target) == name for node in ast.walk(loop))
        ]
        return name is not None and any(self._makes(loop) for loop in loops)

    def _shares(self) -> set[int]:
        """Equal parts of the checkpoints: they bound a making loop, and a worker's number is multiplied by them."""
        numbers = [n for n in self.nodes if isinstance(n, ast.Constant) and type(n.value) is int]
        parts = [n for n in numbers if 1 < n.value < N_CHECKPOINTS and N_CHECKPOINTS % n.value == 0]
        factors = {node.value for node in parts if self._is_factor(node)}
        return {node.value for node in parts if node.value in factors and self._bounds_making(node)}

    def _splits(self) -> set[int]:
        """Numbers at which one making loop ends and another begins."""
        starts, ends = set(), set()
        for node in self.nodes:
            if isinstance(node, ast.Call) and _called(node) in _RANGES and self._makes(self._statement(node)):
                bounds = [a.value for a in node.args if isinstance(a, ast.Constant) and type(a.value) is int]
                if len(bounds) == len(node.args) == 1:
                    ends.add(bounds[0])
                elif node.args and isinstance(node.args[0], ast.Constant):
                    starts.add(node.args[0].value)
                    if len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
                        ends.add(node.args[1].value)
        return {k for k in starts & ends if isinstance(k, int) and 0 < k < N_CHECKPOINTS}


def _is_512(node: ast.AST) -> bool:
    return _folded(node) == N_CHECKPOINTS


def _folded(node: ast.AST) -> int | None:
    """The value of an integer, or of one reckoned from such as 8 * 64, where it stands in one line."""
    if isinstance(node, ast.Constant):
        return node.value if type(node.value) is int else None
    if not isinstance(node, ast.BinOp) or type(node.op) not in _FOLDED or node.lineno != node.end_lineno:
        return None
    sides = [_folded(node.left), _folded(node.right)]
    largest = 32 if isinstance(node.op, ast.Pow | ast.LShift) else _LARGEST
    if None in sides or not 0 <= sides[0] <= _LARGEST or not 0 < sides[1] <= largest:
        return None
    return _FOLDED[type(node.op)](*sides)


def _branches(value: ast.expr) -> list[ast.expr]:
    """What a name may be given by an expression: either side of `2 if DEBUG else 512` and of `n or 512`."""
    if isinstance(value, ast.IfExp):
        return [*_branches(value.body), *_branches(value.orelse)]
    if isinstance(value, ast.BoolOp):
        return [branch for side in value.values for branch in _branches(side)]
    return [value]


def _name(node: ast.AST | None) -> str | None:
    """N, config.N, config["N"] -> N."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
        return node.slice.value
    return None


def _called(call: ast.Call) -> str:
    return _name(call.func) or ""


def _names_a_layer(call: ast.Call) -> bool:
    function = call.func
    parts = [_called(call)]
    if isinstance(function, ast.Attribute):
        parts.append(_name(function.value) or "")
    return any(_WIDTH_CALL.search(part) for part in parts)


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(target, ast.Tuple | ast.List) and isinstance(value, ast.Tuple | ast.List):
        for one, other in zip(target.elts, value.elts, strict=False):
            yield from _pairs(one, other)
    elif name := _name(target):
        yield name, value
