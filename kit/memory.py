"""How the C library keeps memory, without torch."""

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_memory() -> None:
    """Let glibc reuse what is freed, not give it back: fresh pages cost a fault each. Elsewhere nothing happens."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        if any(mallopt(_M_MMAP_THRESHOLD, largest) for largest in (1 << 30, 1 << 25)):  # older ones take 32 MiB at most
            mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)  # alone it would freeze the other at 128 KiB
