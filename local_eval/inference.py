"""What a net says of examples, and the precision in which this machine computes it fast."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kit.device import device_of
from kit.training import unpack


def native_bfloat16(device: torch.device) -> torch.dtype | None:
    """bfloat16 where a CPU multiplies it in hardware (AVX512-BF16, AMX), which trains small nets twice as fast; None
    elsewhere: emulated, it takes more than twice as long as float32."""
    if device.type != "cpu":
        return None
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    return torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else None


@torch.no_grad()
def predict(net: nn.Module, batches: Iterable[Any], *, autocast_dtype: torch.dtype | None = None) -> Tensor:
    """Logits in evaluation mode, float32 (n_examples, n_classes) on the CPU, in the loader's order."""
    net.eval()
    device = device_of(net)
    with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        return torch.cat([net(unpack(batch, device)[0]).float().cpu() for batch in batches])
