"""Locate packages that carry weights, and cache what is converted from them."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from sae_outliers.utils.files import atomic_write


def package_folder(module: str, distribution: str, install: str = "make weights") -> Path:
    """Return the folder of the installed top-level package `module`, without importing it.

    Raise ModuleNotFoundError, naming the pip package `distribution` and the command `install`, if it is not installed.
    """
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the pip package {distribution} is not installed: run `{install}`", name=module)
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
