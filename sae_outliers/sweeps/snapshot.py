"""The code as it is when a sweep is submitted: jobs that start hours later run this copy."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from sae_outliers.paths import CHECKOUT
from sae_outliers.utils.provenance import git_commit

MAX_BYTES = 10 << 20  # a larger file is not code
USER_CONF = "conf/local"  # not in git, but part of the config


def take_snapshot(folder: Path, *without: Path) -> Path:
    """Copy the checkout's tracked and unignored files to `folder`, the commit in a file COMMIT; return the folder.

    Left out are results, what lies below the folders `without`, and files that are too large for code.
    """
    left_out = [folder.resolve() for folder in (CHECKOUT / "results", *without)]
    for path in _files():
        source = CHECKOUT / path
        if any(source.resolve().is_relative_to(other) for other in left_out) or source.stat().st_size > MAX_BYTES:
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, folder / path)
    (folder / "COMMIT").write_text(git_commit() + "\n")
    return folder


def _files() -> Iterator[str]:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        found = subprocess.run(listed, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):  # no checkout: what the project consists of
        found = [path for folder in ("conf", "launch", "sae_outliers") for path in _below(folder)]
    yield from (path for path in found if path and (CHECKOUT / path).is_file())  # one that was deleted is still listed
    yield from _below(USER_CONF)


def _below(folder: str) -> Iterator[str]:
    files = (path for path in (CHECKOUT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return (str(path.relative_to(CHECKOUT)) for path in files)
