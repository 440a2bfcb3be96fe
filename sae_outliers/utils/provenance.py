"""Provenance of a result: commit, package versions, device, peak memory."""

import platform
import resource
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from sae_outliers.paths import CHECKOUT

PACKAGES = ("sae-outliers", "torch", "transformers", "timm", "datasets", "numpy")


def git_commit() -> str:
    """Return the commit of the code, with `-dirty` appended if files differ from it, or `unknown` outside a checkout.

    The snapshot that cluster jobs run from is no checkout; its COMMIT file names the commit.
    """
    if (CHECKOUT / "COMMIT").is_file():
        return (CHECKOUT / "COMMIT").read_text().strip()
    if not (CHECKOUT / ".git").exists():  # git would name the commit of a repository that an environment lies in
        return "unknown"
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="],
            cwd=CHECKOUT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that determine results; `absent` if not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or the number of CPU threads, which both affect run time and rounding."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)"


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of this process in MiB: allocated on the GPU if `device` is one, otherwise resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
