"""The device that a run computes on."""

import torch


def resolve_device(name: str) -> torch.device:
    """`auto` is cuda where there is one, else cpu. Raises ValueError for a device that is not here."""
    torch.backends.cudnn.allow_tf32 = False  # for convolutions it is on by default: 10 bits of mantissa move γ
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
    """Memory of a GPU in GB; None for the CPU."""
    return torch.cuda.get_device_properties(device).total_memory / 1e9 if device.type == "cuda" else None
