"""Select the device that a run computes on."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# how torch's allocator of host memory begins its RuntimeError
HOST_ALLOCATOR = ("[enforce fail at alloc_cpu", "DefaultCPUAllocator")


def resolve_device(name: str) -> torch.device:
    """Return the torch device called `name`; `auto` is CUDA if there is a GPU, and the CPU otherwise.

    Raise ValueError if torch does not know the device, if it is neither of these, or if there is no such GPU.
    """
    # TF32's 10 mantissa bits are too few where |μ|/σ is large: γ would change. cuDNN's convolutions use it by default,
    # matrix products where TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1, as in NVIDIA's containers
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name} is not a device of torch: use auto, cpu, cuda or cuda:<number>") from error
    if device.type not in ("cpu", "cuda"):  # mps has no float64, in which moments are taken
        raise ValueError(f"device={name} is not supported: use auto, cpu, cuda or cuda:<number>")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name}, but torch sees no GPU here: use device=cpu or device=auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={name}, but torch sees {torch.cuda.device_count()} GPU(s) here: use a lower number")
    return device


def memory_gb(device: torch.device) -> float | None:
    """Return the memory of a GPU in GB, or None for the CPU."""
    return torch.cuda.get_device_properties(device).total_memory / 1e9 if device.type == "cuda" else None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether this says that the memory of a GPU, or of the host, is exhausted."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in HOST_ALLOCATOR)


@contextmanager
def memory_for(what: str, remedy: str) -> Iterator[None]:
    """Raise a ValueError, one sentence with the remedy, where the block runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        asked = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
        size = f", which asked for {asked[1]} more" if asked else ""
        raise ValueError(f"out of memory: there is too little for {what}{size}: {remedy}") from error
