"""What a figure was made with: commit, versions, machine."""

import platform
import resource
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from sae_outliers.paths import CHECKOUT

PACKAGES = ("sae-outliers", "torch", "transformers", "timm", "datasets", "numpy")


def git_commit() -> str:
    """Return the commit of the code, with `-dirty` if files differ from it; `unknown` outside a checkout.

    A copy of the code that jobs run from names the commit in a file.
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
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)"


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory of this process so far, in MiB: on the GPU if the run used one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
