"""The code as it is when a sweep is submitted: jobs that start hours later run this copy."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from sae_outliers.paths import CHECKOUT, COPIED_CONF, user_conf
from sae_outliers.utils.provenance import git_commit

MAX_BYTES = 10 << 20  # a larger file is not code
LOCAL_DEFAULTS = "conf/local"  # not in git, but part of the config
IN_CHECKOUT = ("conf", "launch", "sae_outliers")
IN_WHEEL = ("sae_outliers", "hydra_plugins/sae_outliers*")  # configs and site profiles lie inside the package


def take_snapshot(folder: Path, *without: Path) -> Path:
    """Copy the code, its configs and the user's own to `folder`, the commit to a file COMMIT; return the folder.

    Of a checkout these are its tracked and unignored files. Left out are results, what lies below the folders
    `without`, and files that are too large for code.
    """
    left_out = [folder.resolve() for folder in (CHECKOUT / "results", *without)]
    for path in _files():
        source = CHECKOUT / path
        if any(source.resolve().is_relative_to(other) for other in left_out) or source.stat().st_size > MAX_BYTES:
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, folder / path)
    if own := user_conf():
        shutil.copytree(own, folder / COPIED_CONF, ignore=_no_yamls, dirs_exist_ok=True)
    (folder / "COMMIT").write_text(git_commit() + "\n")
    return folder


def _files() -> Iterator[str]:
    if (CHECKOUT / "sae_outliers" / "conf").is_dir():
        yield from _below(*IN_WHEEL)
        return
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        found = subprocess.run(listed, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive
        found = list(_below(*IN_CHECKOUT))
    yield from (path for path in found if path and (CHECKOUT / path).is_file())  # one that was deleted is still listed
    yield from _below(LOCAL_DEFAULTS)


def _no_yamls(folder: str, names: list[str]) -> set[str]:
    """Return the files that copytree leaves out."""
    return {name for name in names if not name.endswith(".yaml") and not Path(folder, name).is_dir()}


def _below(*folders: str) -> Iterator[str]:
    """Files below these folders of the checkout, which may be patterns, without compiled ones."""
    for folder in folders:
        files = (path for path in CHECKOUT.glob(f"{folder}/**/*") if path.is_file() and "__pycache__" not in path.parts)
        yield from (str(path.relative_to(CHECKOUT)) for path in files)
