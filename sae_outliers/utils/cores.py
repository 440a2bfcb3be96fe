"""CPU cores that this process may run on."""

import os


def usable_cores() -> int:
    """Return how many there are: fewer than the machine has under taskset, or in a SLURM allocation of some of them."""
    if hasattr(os, "sched_getaffinity"):  # macOS and Windows have none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
