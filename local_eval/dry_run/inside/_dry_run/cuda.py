"""A CPU that answers as a GPU: programs that insist on CUDA run unchanged, their tensors stay where they are.

Device arguments are mapped where they reach torch, by one torch-function mode; `torch.device("cuda")` itself stays what
it is, so that programs that look at its type see what they expect.
"""

import threading
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import wraps
from types import ModuleType, SimpleNamespace

NAME = "Dry run (CPU)"
_MEMORY_BYTES = 16 * 2**30
_ACTIONS = (
    *("init", "_lazy_init", "synchronize", "empty_cache", "ipc_collect", "set_device"),
    *("manual_seed", "manual_seed_all", "seed", "seed_all"),
    *("reset_peak_memory_stats", "reset_max_memory_allocated", "set_per_process_memory_fraction"),
)


def hooks() -> dict[str, Callable[[ModuleType], object]]:
    return {"torch": install, "torch.utils.data.dataloader": _nothing_pinned}


def _nothing_pinned(module: ModuleType) -> None:
    """Pinned memory is the GPU driver's."""
    plain = module.DataLoader.__init__

    @wraps(plain)
    def init(self, *args, **kwargs):
        kwargs.pop("pin_memory", None)
        return plain(self, *args, **kwargs)

    module.DataLoader.__init__ = init


def install(torch: ModuleType) -> None:
    if torch.cuda.is_available():
        return
    mode = _mode(torch)
    mode.__enter__()
    _in_every_thread(mode)
    _answers(torch.cuda, torch)
    _storages_and_loading(torch)
    _no_scaling(torch)
    parallel = torch.nn.DataParallel
    parallel.__init__ = _data_parallel_init(torch)
    parallel.forward = lambda self, *inputs, **options: self.module(*inputs, **options)


def mapped(torch: ModuleType, value):
    """`value`, or the CPU where it names a CUDA device."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")):
        return "cpu"
    return value


def _mode(torch: ModuleType):
    stay = {torch.Tensor.cuda: lambda tensor, *_, **__: tensor}
    autocast = ("autocast", "GradScaler")

    class OnCpu(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            if function in stay:
                return stay[function](*args, **kwargs)
            if getattr(function, "__name__", "") in autocast:
                return function(*args, **kwargs)
            if function is torch.Tensor.pin_memory:
                return args[0]
            args = tuple(mapped(torch, value) for value in args)
            if function is torch.Tensor.to and len(args) > 1 and type(args[1]) is int:
                args = (args[0], "cpu", *args[2:])
            if "device" in kwargs:
                device = kwargs["device"]
                kwargs = {**kwargs, "device": "cpu" if type(device) is int else mapped(torch, device)}
            return function(*args, **kwargs)

    return OnCpu()


def _in_every_thread(mode) -> None:
    """Modes belong to a thread; a new one takes it along."""
    plain = threading.Thread._bootstrap_inner

    def bootstrap(self):
        with mode:
            plain(self)

    threading.Thread._bootstrap_inner = bootstrap


def _answers(cuda: ModuleType, torch: ModuleType) -> None:
    """What torch.cuda says of itself."""
    properties = SimpleNamespace(
        name=NAME, total_memory=_MEMORY_BYTES, major=7, minor=5, multi_processor_count=40, is_integrated=False
    )
    values = {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": NAME,
        "get_device_capability": (7, 5),
        "get_device_properties": properties,
        "get_arch_list": ["sm_75"],
        "mem_get_info": (_MEMORY_BYTES, _MEMORY_BYTES),
        "memory_summary": "",
        "memory_stats": {},
        **dict.fromkeys(
            ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved", "utilization"), 0
        ),
        **dict.fromkeys(_ACTIONS),
    }
    for name, value in values.items():
        setattr(cuda, name, lambda *_, value=value, **__: value)
    cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.get_rng_state_all = lambda *_, **__: [torch.get_rng_state()]
    cuda.set_rng_state = lambda *_, **__: None
    cuda.set_rng_state_all = lambda *_, **__: None
    cuda.Event, cuda.Stream = _Event, _Stream
    cuda.current_stream = cuda.default_stream = lambda *_, **__: _Stream()
    cuda.stream = lambda *_, **__: nullcontext()
    cuda.device = _device
    for kind in ("Float", "Double", "Half", "Long", "Int", "Short", "Byte", "Bool", "Char"):
        setattr(cuda, f"{kind}Tensor", getattr(torch, f"{kind}Tensor"))
    torch.Generator = _generator_type(torch)
    plain = torch.set_default_device
    torch.set_default_device = lambda device: plain(mapped(torch, device))


def _generator_type(torch: ModuleType) -> type:
    """torch.Generator for a device that may be a GPU by name; instances are torch's own."""
    plain = torch.Generator

    class Kind(type):
        def __call__(cls, device="cpu"):
            return plain(device=mapped(torch, device))

        def __instancecheck__(cls, value) -> bool:
            return isinstance(value, plain)

    return Kind("Generator", (), {})


@contextmanager
def _device(*_):
    yield


class _Event:
    """Time between two of them: what the wall clock says."""

    def __init__(self, *_, **__):
        self.at = 0.0

    def record(self, *_) -> None:
        import time

        self.at = time.perf_counter()

    def elapsed_time(self, later: "_Event") -> float:
        return 1000 * (later.at - self.at)

    def synchronize(self) -> None: ...

    def wait(self, *_) -> None: ...

    def query(self) -> bool:
        return True


class _Stream(_Event):
    def wait_stream(self, *_) -> None: ...

    def wait_event(self, *_) -> None: ...

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None: ...


def _storages_and_loading(torch: ModuleType) -> None:
    for storage in (torch.UntypedStorage, torch.TypedStorage):
        storage.cuda = lambda self, *_, **__: self
    plain = torch.load

    @wraps(plain)
    def load(f, map_location=None, *args, **kwargs):
        if isinstance(map_location, dict):
            map_location = {mapped(torch, k): mapped(torch, v) for k, v in map_location.items()}
        return plain(f, mapped(torch, map_location), *args, **kwargs)

    torch.load = torch.serialization.load = load


def _no_scaling(torch: ModuleType) -> None:
    """A loss scale serves float16 on a GPU; here it would refuse tensors of the CPU."""
    for module in (torch.cuda.amp, getattr(torch, "amp", None)):
        plain = getattr(module, "GradScaler", None)
        if plain is None:
            continue

        class GradScaler(plain):
            def __init__(self, *args, **kwargs):
                kwargs["enabled"] = False
                super().__init__(*(arg for arg in args if isinstance(arg, str)), **kwargs)

        module.GradScaler = GradScaler


def _data_parallel_init(torch: ModuleType) -> Callable:
    def init(self, module, *_, **__):
        torch.nn.Module.__init__(self)
        self.module = module

    return init
