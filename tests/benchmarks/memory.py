"""How much memory a case adds, at its peak, to what the process holds before it."""

import ctypes
import gc
import math
from pathlib import Path

import torch

from tests.benchmarks.timing import Case, finish

MB = 1e6
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
HOW = "peak resident set (VmHWM, reset before) less the resident set before"


def peak_extra_mb(case: Case, device: torch.device) -> float:
    """MB. On CUDA, of torch's allocations; else of the resident set, which only Linux tells: NaN elsewhere."""
    gc.collect()
    if device.type == "cuda":
        return _on_cuda(case, device)
    if not CLEAR_REFS.exists():
        return math.nan
    _give_back_free_memory()
    CLEAR_REFS.write_text("5")  # sets the high-water mark to the resident set of now (man 5 proc)
    before = _resident_kib("VmRSS")
    case()
    return (_resident_kib("VmHWM") - before) * 1024 / MB


def _give_back_free_memory() -> None:
    """Have glibc return what it keeps for later: the case would use it, and seem to need that much less."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim:
        malloc_trim(0)


def _on_cuda(case: Case, device: torch.device) -> float:
    finish(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    case()
    finish(device)
    return (torch.cuda.max_memory_allocated(device) - before) / MB


def _resident_kib(field: str) -> int:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0])
