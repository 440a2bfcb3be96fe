"""Select the device that a run computes on."""

import torch


def resolve_device(name: str) -> torch.device:
    """Return the torch device called `name`; `auto` is CUDA if there is a GPU, and the CPU otherwise.

    Raise ValueError if torch does not know the device or there is no GPU.
    """
    # cuDNN convolutions use TF32 by default, whose 10 mantissa bits are too few where |μ|/σ is large: γ would change
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name} is not a device of torch: use auto, cpu, cuda or cuda:<number>") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name}, but torch sees no GPU here: use device=cpu or device=auto")
    return device


def memory_gb(device: torch.device) -> float | None:
    """Return the memory of a GPU in GB, or None for the CPU."""
    return torch.cuda.get_device_properties(device).total_memory / 1e9 if device.type == "cuda" else None
