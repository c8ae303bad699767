"""Which code belongs to which cell, and where a cell failed."""

import ast
import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType, TracebackType

from _dry_run.events import Recorder
from _dry_run.kept import Loops, watch_modules

_RUNNER = (os.path.dirname(__file__), os.path.dirname(ast.__file__))


def hooks(recorder: Recorder) -> dict[str, Callable[[ModuleType], object]]:
    main = os.getpid()
    watch_modules(lambda file: recorder.place(file, 1) is not None)

    def on_compilerop(module: ModuleType) -> None:
        cache = module.CachingCompiler.cache

        def named(self, transformed_code, number=0, raw_code=None):
            name = cache(self, transformed_code, number, raw_code)
            recorder.cells[name] = recorder.current_cell = number
            recorder.record("cell", file=name, number=number)
            return name

        module.CachingCompiler.cache = named

    def on_shell(module: ModuleType) -> None:
        transform = module.InteractiveShell.transform_ast
        module.InteractiveShell.transform_ast = lambda shell, node: Loops().visit(transform(shell, node))
        for name in ("showtraceback", "showsyntaxerror", "showindentationerror"):
            setattr(module.InteractiveShell, name, _recorded_before(recorder, getattr(module.InteractiveShell, name)))

    def except_hook(kind, error, trace):
        if os.getpid() == main:
            _record_error(recorder, kind, error)
        while trace and os.path.dirname(trace.tb_frame.f_code.co_filename) in _RUNNER:
            trace = trace.tb_next  # the frames that run a script are none of its own
        sys.__excepthook__(kind, error.with_traceback(trace), trace)

    sys.excepthook = except_hook
    return {"IPython.core.compilerop": on_compilerop, "IPython.core.interactiveshell": on_shell}


def _recorded_before(recorder: Recorder, show: Callable) -> Callable:
    def shown(*args, **kwargs):
        kind, error, _ = sys.exc_info()
        if error is not None:
            _record_error(recorder, kind, error)
        return show(*args, **kwargs)

    return shown


def _record_error(recorder: Recorder, kind: type, error: BaseException) -> None:
    place = None
    if isinstance(error, SyntaxError):
        place = recorder.place(error.filename or "", error.lineno or 0)
    for frame, line in _frames(error.__traceback__):
        place = recorder.place(frame, line) or place
    text = "".join(traceback.format_exception_only(kind, error)).strip()
    recorder.record("error", message=text, where=place)


def _frames(trace: TracebackType | None) -> list[tuple[str, int]]:
    return [(summary.f_code.co_filename, line) for summary, line in traceback.walk_tb(trace)]
