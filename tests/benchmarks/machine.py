"""What the timings were taken with: commit, versions, machine."""

import os
import platform
from datetime import date
from importlib import metadata
from pathlib import Path

import torch

from sae_outliers.utils.provenance import git_commit
from tests.benchmarks.peers import PEERS

QUIET = 0.5  # processes that run, on average


def description(device: torch.device) -> dict[str, str]:
    """Named facts, in the order in which they are read."""
    return {
        "date": date.today().isoformat(),
        "commit": git_commit(),
        "CPU": f"{cpu_model()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": f"{torch.get_num_threads()} (torch's default)",
        "GPU": torch.cuda.get_device_name(device) if device.type == "cuda" else "none used",
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }


def load() -> str:
    """How busy the machine has been in the last minute, which spoils timings."""
    busy = os.getloadavg()[0]
    return f"{busy:.1f} when it began" + (", **not a quiet machine**" if busy > QUIET else "")


def cpu_model() -> str:
    """As Linux names it, else as Python does."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of Python, torch and the peers that are installed."""
    found = {"Python": platform.python_version(), "torch": metadata.version("torch")}
    return found | {peer.distribution: version for peer in PEERS if (version := peer.version())}
