"""Locate packages that carry weights, and cache what is converted from them."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock
from packaging.requirements import Requirement

from sae_outliers.paths import CONF, INSTALLED
from sae_outliers.utils.files import atomic_write

# by the name of a list in conf/packages/, the make target that brings what it lists
TARGETS = {"weights": "make weights", "spliceai": "make weights SPLICEAI=yes", "esm": "make esm"}
EXTRAS = {"diffusers": "diffusion", "esm": "esm"}  # of this project, by the package that they are for


def install_command(distribution: str) -> str:
    """Return the command that installs a pip package at the version that was tried: make in a checkout, else pip."""
    pins = {target: _pin(distribution, CONF / "packages" / f"{name}.txt") for name, target in TARGETS.items()}
    target, pin = next(((target, pin) for target, pin in pins.items() if pin), (None, None))
    if target and not INSTALLED:
        return target
    commands = [f"pip install 'sae-outliers[{EXTRAS[distribution]}]'"] if distribution in EXTRAS else []
    commands += [f"pip install --no-deps {pin}"] if pin else []
    return " && ".join(commands) or f"pip install {distribution}"


def _pin(distribution: str, file: Path) -> str | None:
    """Return a package with the version that a list pins for this Python; None if the list does not hold it."""
    for line in file.read_text().splitlines():
        if line.startswith(f"{distribution}=="):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                return f"{requirement.name}{requirement.specifier}"
    return None


def package_folder(module: str, distribution: str) -> Path:
    """Return the folder of the installed top-level package `module`, without importing it.

    Raises:
        ModuleNotFoundError: it is not installed; the message names the pip package and the command that installs it.
    """
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the pip package {distribution} is not installed: run `{install_command(distribution)}`", name=module
        )
    return Path(spec.submodule_search_locations[0])


def cache_folder() -> Path:
    """Return `$SAE_OUTLIERS_CACHE`, or `~/.cache/sae_outliers`; it may not exist yet."""
    named = os.environ.get("SAE_OUTLIERS_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "sae_outliers"


def converted(name: str, write: Callable[[Path], None]) -> Path:
    """Return the file or folder `name` of the cache; if it is absent, let `write(path)` make it first.

    Put whatever determines the content (the package's version) into `name`: an entry is never written again.
    """
    path = cache_folder() / name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # conversions take up to a minute and gigabytes of memory: a second process waits instead of converting as well
    with FileLock(path.with_name(f".{name}.lock")):
        if not path.exists():
            with atomic_write(path) as beside:
                write(beside)
    return path
