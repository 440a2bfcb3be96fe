"""Where weight packages are found, and where what is converted from them is kept."""

import os
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from sae_outliers.utils.files import atomic_write


def package_folder(module: str, distribution: str, install: str = "make weights") -> Path:
    """The folder of the installed top-level package `module`, found without importing it.

    Raises ModuleNotFoundError, naming the pip package `distribution` and the command `install`, otherwise.
    """
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the pip package {distribution} is not installed: run `{install}`", name=module)
    return Path(spec.submodule_search_locations[0])


def cache_folder() -> Path:
    """`$SAE_OUTLIERS_CACHE`, or `~/.cache/sae_outliers`; it need not exist yet."""
    named = os.environ.get("SAE_OUTLIERS_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "sae_outliers"


def distribution_version(distribution: str) -> str:
    """The installed version of a pip package. Raises PackageNotFoundError if there is none."""
    return metadata.version(distribution)


def converted(name: str, write: Callable[[Path], None]) -> Path:
    """The cached file `name`; made by `write(path)` if it is absent.

    Put whatever determines the content (the package's version) into `name`. Of two processes that start at
    once both write, each a file of its own, and the last renames its own over the other: equal content, never
    half a file.
    """
    path = cache_folder() / name
    if not path.exists():
        with atomic_write(path) as beside:
            write(beside)
    return path
