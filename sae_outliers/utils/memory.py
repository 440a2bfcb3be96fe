"""Memory that is freed and asked for again, as in every training step: kept, and in huge pages.

By default glibc gives large blocks back to the system, which then clears each of their pages (of 4 KiB) when it hands
them out anew. That took 10 % of a step of twenty small SAEs, and 15 % of one of d_model 4096.
"""

import ctypes
import os
import sys

LARGEST = 32 << 20  # bytes of a block that is kept: glibc takes no more here
KEPT = 256 << 20  # bytes that are kept altogether
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt

ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(LARGEST),
    "MALLOC_TRIM_THRESHOLD_": str(KEPT),
    "THP_MEM_ALLOC_ENABLE": "1",  # torch reads it before its first tensor
}


def keep_freed_memory() -> None:
    """Keep up to 256 MiB of what is freed, and take large tensors from huge pages, here and in child processes.

    Call it before torch makes its first tensor. What the environment says already is left; away from Linux nothing
    changes.
    """
    if sys.platform != "linux" or not ENVIRONMENT.keys().isdisjoint(os.environ):
        return
    os.environ.update(ENVIRONMENT)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
