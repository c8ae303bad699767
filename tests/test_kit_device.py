"""What the kit asks of CUDA, by a fake that answers as Kaggle's machines do."""

import argparse

import pytest
import torch

from kit.device import accelerators, choose_device, is_out_of_memory, peak_bytes, reproducible
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


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (InputError("finetune: no model in 3 attempts (OutOfMemoryError: CUDA out of memory)"), True),
        (ValueError("expected 3 channels"), False),
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
