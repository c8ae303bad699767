"""A second torch device that needs no hardware: code that mixes devices, as only a GPU would show, fails on it.

`register()` makes the device "other" known to this process, for good. A tensor on it carries a CPU tensor, on which its
operations are done; an operation that is given tensors of both devices raises, as between cuda and cpu. It stands on
torch's backends in Python, which are experimental: written for torch 2.9 and later.
"""

from collections import Counter
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

NAME = "other"
COPIES = {"aten::copy_", "aten::_to_copy"}  # between devices is what they are for
BY_INDEX = {"aten::index.Tensor", "aten::index_put_"}  # an index may stay on the CPU, as with cuda
CALLS: Counter[str] = Counter()  # of the device's module, by name
_registered: list[Any] = []


class Elsewhere(torch.Tensor):
    """A tensor of the second device; `cpu_` holds its entries."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, entries: torch.Tensor) -> "Elsewhere":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            entries.size(),
            strides=entries.stride(),
            storage_offset=entries.storage_offset(),
            dtype=entries.dtype,
            device=torch.device(NAME, 0),
        )
        tensor.cpu_ = entries
        return tensor

    @property
    def data(self) -> torch.Tensor:
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, tensor: "Elsewhere") -> None:
        torch.Tensor.data.__set__(self, tensor)
        self.cpu_ = tensor.cpu_  # Module.to(memory_format=...) sets it

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return run(operation, args, dict(kwargs or {}))


def run(operation: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Do an operation on the entries, its result on the device where it belongs."""
    name = operation.name()
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    strangers = [tensor for tensor in given if not isinstance(tensor, Elsewhere) and tensor.ndim]
    if strangers and len(strangers) < len(given) and name not in COPIES | BY_INDEX:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {NAME}:0 and cpu in {name}")
    to_cpu = False
    if kwargs.get("device") is not None:
        to_cpu = torch.device(kwargs["device"]).type == "cpu"
        kwargs["device"] = torch.device("cpu")
    entries_args, entries_kwargs = tree_map(lambda leaf: getattr(leaf, "cpu_", leaf), (args, kwargs))
    result = operation(*entries_args, **entries_kwargs)
    if name == "aten::copy_":
        return args[0]
    own = {id(tensor.cpu_): tensor for tensor in given if isinstance(tensor, Elsewhere)}

    def placed(leaf: Any) -> Any:
        if to_cpu or not isinstance(leaf, torch.Tensor):
            return leaf
        return own.get(id(leaf)) if id(leaf) in own else Elsewhere(leaf)  # in place: the very same tensor

    return tree_map(placed, result)


class Module(backend_registration._DummyBackendModule):
    """What `torch.other` offers, as torch.cuda does."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def synchronize(self) -> None:
        CALLS["synchronize"] += 1

    def empty_cache(self) -> None:
        CALLS["empty_cache"] += 1

    def max_memory_allocated(self) -> int:
        return 123_000_000


def _made_on_the_cpu(plain: Any) -> Any:
    """torch.tensor(..., device="other") turns Python off on its way to the device, where this one needs it."""

    def tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        return plain(data, **options) if device is None else plain(data, **options).to(device)

    return tensor


def register() -> str:
    """Make the device known to this process; its name."""
    if not _registered:
        backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
        library = torch.library.Library("_", "IMPL")
        library.fallback(lambda operation, *args, **kwargs: run(operation, args, kwargs), "PrivateUse1")
        library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        _registered.append(library)
        torch.tensor = _made_on_the_cpu(torch.tensor)
    return NAME
