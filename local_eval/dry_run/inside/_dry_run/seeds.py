"""Seeds that the program sets, with their values."""

import random
import sys
from collections.abc import Callable
from types import ModuleType

from _dry_run.events import Recorder


def hooks(recorder: Recorder) -> dict[str, Callable[[ModuleType], object]]:
    def noted(of: str, function: Callable) -> Callable:
        def seed(*args, **kwargs):
            value = args[0] if args else next(iter(kwargs.values()), None)
            if value is not None and (where := recorder.where()):
                recorder.record("seed", of=of, value=repr(value)[:80], where=where)
            return function(*args, **kwargs)

        return seed

    def on_numpy(module: ModuleType) -> None:
        module.seed = noted("numpy", module.seed)

    def on_torch_random(module: ModuleType) -> None:
        module.manual_seed = noted("torch", module.manual_seed)

    def on_cuda_random(module: ModuleType) -> None:
        for name in ("manual_seed", "manual_seed_all"):
            plain = getattr(module, name)
            setattr(module, name, _unless_by_torch(plain, noted("cuda", plain)))

    random.seed = noted("random", random.seed)
    return {"numpy.random": on_numpy, "torch.random": on_torch_random, "torch.cuda.random": on_cuda_random}


def _unless_by_torch(plain: Callable, noted: Callable) -> Callable:
    """torch.manual_seed seeds the GPUs too: that is noted once, as torch's."""

    def seed(*args, **kwargs):
        by_torch = sys._getframe(1).f_globals.get("__name__", "").startswith("torch.")
        return (plain if by_torch else noted)(*args, **kwargs)

    return seed
