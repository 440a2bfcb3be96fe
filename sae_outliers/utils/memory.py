"""Memory that is freed and asked for again, as in every training step: kept, and in huge pages.

By default glibc gives large blocks back to the system, which then clears each of their pages (of 4 KiB) when it hands
them out anew. That took 10 % of a step of twenty small SAEs, and 15 % of one of d_model 2048.
"""

import ctypes
import os
import sys

KEPT = 2**31 - 1  # bytes that are kept altogether: as many as mallopt can be told
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt

ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",  # no block is the system's own, which would go back at once
    "MALLOC_TRIM_THRESHOLD_": str(KEPT),
    "THP_MEM_ALLOC_ENABLE": "1",  # torch reads it before its first tensor
}


def keep_freed_memory() -> None:
    """Keep up to 2 GiB of what is freed, and take large tensors from huge pages, here and in child processes.

    Call it before torch makes its first tensor. What the environment says already is left; away from Linux nothing
    changes.
    """
    if sys.platform != "linux" or not ENVIRONMENT.keys().isdisjoint(os.environ):
        return
    os.environ.update(ENVIRONMENT)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
