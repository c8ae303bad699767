"""What the kit asks of CUDA, by a fake that answers as Kaggle's machines do."""

import argparse
from contextlib import contextmanager

import pytest
import torch

from kit.device import (
    accelerators,
    choose_device,
    is_out_of_memory,
    memory_format,
    peak_bytes,
    reproducible,
    synchronize,
)
from kit.errors import InputError
from kit.tools.commands import devices_of


@pytest.fixture
def two_t4(monkeypatch):
    """Two GPUs that torch sees; a tensor on them is one on the CPU."""
    plain = torch.ones
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "ones", lambda *size, device=None: plain(*size))


def options(device="auto", slots=None, n_models=512):
    return argparse.Namespace(device=device, slots=slots, n_models=n_models)


def test_every_gpu_is_used(two_t4):
    assert accelerators() == ["cuda:0", "cuda:1"]
    assert devices_of(options()) == ["cuda:0", "cuda:1"]
    assert devices_of(options(slots=2)) == ["cuda:0", "cuda:1"] * 2
    assert devices_of(options("cuda:1")) == ["cuda:1"]
    assert devices_of(options("cpu", slots=3)) == ["cpu"] * 3


def test_a_gpu_that_this_torch_has_no_kernels_for_is_told(monkeypatch):
    def no_kernel(*size, device=None):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    monkeypatch.setattr(torch, "ones", no_kernel)
    with pytest.raises(InputError, match=r"no kernel image .* kernels for \['sm_75', 'sm_90'\], the GPU is sm_60"):
        choose_device("auto")


def test_no_gpu_is_no_fault_of_auto_but_of_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    assert accelerators() == []
    with pytest.raises(InputError, match="switch the accelerator on"):
        choose_device("cuda")
    with pytest.raises(InputError, match="device 'gpu' cannot be used"):
        choose_device("gpu")


def test_a_gpu_that_is_not_there_is_told_which_are(two_t4, monkeypatch):
    def no_such_device(*size, device=None):
        raise RuntimeError("CUDA error: invalid device ordinal\nmore")

    monkeypatch.setattr(torch, "ones", no_such_device)
    with pytest.raises(InputError, match=r"invalid device ordinal\): there are cuda:0, cuda:1$"):
        choose_device("cuda:2")


def test_a_gpu_is_the_current_one_while_it_works(monkeypatch):
    entered = []

    @contextmanager
    def device(which):
        entered.append(which)
        yield
        entered.append("left")

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: entered.append("waited"))
    with reproducible("cuda:1"):
        assert entered == ["cuda:1"]
    synchronize("cuda:1")
    assert entered == ["cuda:1", "left", "cuda:1", "waited", "left"]
    with reproducible():
        assert len(entered) == 5


@pytest.mark.parametrize(("capability", "layout"), [((7, 5), torch.contiguous_format), ((8, 0), torch.channels_last)])
def test_images_lie_as_the_gpus_convolutions_like_them(monkeypatch, capability, layout):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert memory_format(torch.device("cuda:0")) is layout
    assert memory_format(torch.device("cpu")) is torch.channels_last


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (InputError("finetune: no model in 3 attempts (OutOfMemoryError: CUDA out of memory)"), True),
        (ValueError("expected 3 channels"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
    ],
)
def test_what_is_a_shortage_of_memory(error, short):
    assert is_out_of_memory(error) is short


def test_the_same_bits_inside_and_everything_as_before_outside():
    torch.set_num_threads(2)
    try:
        with reproducible():
            assert (torch.get_num_threads(), torch.backends.cudnn.deterministic) == (1, True)
        assert (torch.get_num_threads(), torch.backends.cudnn.deterministic) == (2, False)
    finally:
        torch.set_num_threads(1)


def test_memory_of_this_process():
    assert 1e8 < peak_bytes("cpu") < 1e11
