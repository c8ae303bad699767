"""A CPU that answers as a GPU: programs that insist on CUDA run unchanged, their tensors stay where they are.

Device arguments are mapped where they reach torch, by one torch-function mode; `torch.device("cuda")` itself stays what
it is, so that programs that look at its type see what they expect.
"""

import threading
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import wraps
from types import ModuleType, SimpleNamespace

NAME = "Tesla T4"  # what Kaggle gives; all answers are this card's
_MEMORY_BYTES = 15_843_721_216
_ACTIONS = (
    *("init", "_lazy_init", "synchronize", "empty_cache", "ipc_collect", "set_device"),
    *("manual_seed", "manual_seed_all", "seed", "seed_all"),
    *("reset_peak_memory_stats", "reset_max_memory_allocated", "reset_max_memory_cached"),
    *("reset_accumulated_memory_stats", "reset_peak_host_memory_stats", "set_per_process_memory_fraction"),
    *("set_sync_debug_mode", "caching_allocator_delete", "check_error"),
)


def hooks() -> dict[str, Callable[[ModuleType], object]]:
    return {"torch": install, "torch.utils.data.dataloader": _nothing_pinned, "torch._dynamo": _not_compiled}


def _not_compiled(module: ModuleType) -> None:
    """A compiler would ask the driver, and take minutes; compiled or not, a net computes the same."""
    import torch

    torch.compile = compile_ = _compiler(torch)
    module.optimize = lambda *_, **__: compile_


def _compiler(torch: ModuleType) -> Callable:
    """torch.compile: a net in the wrapper that puts `_orig_mod.` before its names, a function as it is."""

    class OptimizedModule(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            del self.__dict__["training"]  # that of the net within counts
            self._modules["_orig_mod"] = module

        def __getattr__(self, name):
            module = self.__dict__.get("_modules", {}).get("_orig_mod")
            return module if name == "_orig_mod" else getattr(module, name)

        def __setattr__(self, name, value):
            setattr(self._orig_mod, name, value)

        def forward(self, *args, **kwargs):
            return self._orig_mod(*args, **kwargs)

    def compile_(model=None, **_):
        if model is None:
            return compile_
        return OptimizedModule(model) if isinstance(model, torch.nn.Module) else model

    return compile_


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
    torch.compile = _compiler(torch)
    torch.nn.Module.compile = lambda self, *_, **__: None
    _optimizers(torch)
    parallel = torch.nn.DataParallel
    parallel.__init__ = _data_parallel_init(torch)
    parallel.forward = lambda self, *inputs, **options: self.module(*inputs, **options)
    torch.nn.parallel.data_parallel = _data_parallel


def mapped(torch: ModuleType, value):
    """`value`, or the CPU where it names a CUDA device."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")):
        return "cpu"
    return value


def _mode(torch: ModuleType):
    stay = {
        torch.Tensor.cuda: lambda tensor, *_, **__: tensor,
        torch.Tensor.pin_memory: lambda tensor, *_, **__: tensor,
        torch.Tensor.is_pinned: lambda *_, **__: False,
    }
    autocast = ("autocast", "GradScaler")

    class OnCpu(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            if function in stay:
                return stay[function](*args, **kwargs)
            if getattr(function, "__name__", "") in autocast:
                return function(*args, **kwargs)
            if function is torch.Tensor.type and len(args) > 1 and isinstance(args[1], str):
                args = (args[0], args[1].replace("torch.cuda.", "torch."), *args[2:])
            if kwargs.get("pin_memory"):
                kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
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
        name=NAME,
        total_memory=_MEMORY_BYTES,
        major=7,
        minor=5,
        multi_processor_count=40,
        is_integrated=False,
        is_multi_gpu_board=False,
        max_threads_per_multi_processor=1024,
        regs_per_multiprocessor=65536,
        warp_size=32,
        L2_cache_size=4 * 2**20,
        gcnArchName="",
        uuid="GPU-00000000-0000-0000-0000-000000000000",
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
        "is_current_stream_capturing": False,
        "is_tf32_supported": False,
        "can_device_access_peer": False,
        "get_per_process_memory_fraction": 1.0,
        "current_blas_handle": 0,
        "caching_allocator_alloc": 0,
        "temperature": 40,
        "power_draw": 26_000,
        "clock_rate": 585,
        "memory_usage": 0,
        "list_gpu_processes": "no processes are running",
        "memory_snapshot": [],
        "get_sync_debug_mode": 0,
        "memory_summary": "",
        "memory_stats": {},
        **dict.fromkeys(
            ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved", "utilization"), 0
        ),
        **dict.fromkeys(_ACTIONS),
    }
    for name, value in values.items():
        for module in (cuda, cuda.memory, cuda.graphs, cuda.random):
            if module is cuda or hasattr(module, name):
                setattr(module, name, lambda *_, value=value, **__: value)
    cuda.is_bf16_supported = lambda including_emulation=True: including_emulation
    cuda.initial_seed = lambda: torch.initial_seed()
    cuda.default_generators = (torch.default_generator,)
    cuda.memory._record_memory_history = lambda *_, **__: None
    cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.get_rng_state_all = lambda *_, **__: [torch.get_rng_state()]
    cuda.set_rng_state = lambda *_, **__: None
    cuda.set_rng_state_all = lambda *_, **__: None
    cuda.Event, cuda.Stream = _Event, _Stream
    cuda.CUDAGraph = cuda.graph = cuda.make_graphed_callables = _no_graph
    if hasattr(torch, "accelerator"):
        _accelerator(torch.accelerator, torch)
    torch.Tensor.record_stream = lambda *_, **__: None
    plain_fork = torch.random.fork_rng
    torch.random.fork_rng = lambda devices=(), *_, **__: plain_fork([])
    cuda.current_stream = cuda.default_stream = lambda *_, **__: _Stream()
    cuda.stream = lambda *_, **__: nullcontext()
    cuda.device = _device
    for kind in ("Float", "Double", "Half", "Long", "Int", "Short", "Byte", "Bool", "Char"):
        setattr(cuda, f"{kind}Tensor", getattr(torch, f"{kind}Tensor"))
    torch.Generator = _generator_type(torch)
    plain = torch.set_default_device
    torch.set_default_device = lambda device: plain(mapped(torch, device))


def _accelerator(accelerator: ModuleType, torch: ModuleType) -> None:
    """torch.accelerator, which asks CUDA by a way of its own."""
    values = {
        "is_available": True,
        "device_count": 1,
        "current_accelerator": torch.device("cuda"),
        "current_device_index": 0,
        "current_device_idx": 0,
        "get_device_capability": {},
        "get_memory_info": (_MEMORY_BYTES, _MEMORY_BYTES),
        "memory_stats": {},
        **dict.fromkeys(("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"), 0),
        **dict.fromkeys(("synchronize", "set_device_index", "set_device_idx", "set_stream", "empty_cache")),
        **dict.fromkeys(("reset_peak_memory_stats", "reset_accumulated_memory_stats", "empty_host_cache")),
    }
    for name, value in values.items():
        if hasattr(accelerator, name):
            setattr(accelerator, name, lambda *_, value=value, **__: value)
    accelerator.current_stream = lambda *_, **__: _Stream()
    accelerator.device_index = _device


def _no_graph(*_, **__):
    raise NotImplementedError("the dry run has no GPU, and a CUDA graph cannot be pretended")


def _optimizers(torch: ModuleType) -> None:
    """Forms of an optimiser that only a GPU has give way to the plain one, whose steps are the same."""
    for kind in vars(torch.optim).values():
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)) or kind is torch.optim.Optimizer:
            continue
        kind.__init__ = _without_gpu_forms(kind.__init__)


def _without_gpu_forms(plain: Callable) -> Callable:
    @wraps(plain)
    def init(self, *args, **kwargs):
        for name in ("capturable", "fused"):
            if kwargs.get(name):
                kwargs[name] = type(kwargs[name])()  # False
        return plain(self, *args, **kwargs)

    return init


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
    def is_capturing(self) -> bool:
        return False

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


def _data_parallel(module, inputs, device_ids=None, output_device=None, dim=0, module_kwargs=None):
    return module(*(inputs if isinstance(inputs, tuple) else (inputs,)), **(module_kwargs or {}))


def _data_parallel_init(torch: ModuleType) -> Callable:
    def init(self, module, *_, **__):
        torch.nn.Module.__init__(self)
        self.module = module
        self.device_ids, self.output_device, self.dim = [0], 0, 0

    return init
