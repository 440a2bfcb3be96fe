"""Write files atomically and durably, fingerprint them, and test their locks."""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path for a new file or folder; when the block ends without an error, rename it to `path`.

    A reader thus sees the complete file or none, after a power cut too: content is on the disk before the name is, and
    the name when this returns. A file replaces the one at `path`, whereas a folder that exists stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # nobody can lay a link where it will be
    try:
        yield beside
        mode = 0o666 & ~_umask()  # safetensors makes files that only their owner can read
        for file in _files_below(beside) if beside.is_dir() else [beside]:
            file.chmod(mode)
            sync(file)
        if beside.is_dir():
            _rename_folder(beside, path)
        else:
            beside.replace(path)
        sync(path.parent)
    finally:
        _remove(beside)


def sync(path: Path) -> None:
    """Have the disk hold a file's content, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems cannot do it for a folder
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left of their atomic writes. Call it under the lock of the folder's writers."""
    for path in folder.glob(".*.tmp"):
        _remove(path)


def read_regular(path: Path) -> bytes:
    """Return a file's content. Raise OSError for anything but a regular file: a pipe would block its reader."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is not a regular file")
        return file.read()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _rename_folder(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.exists():  # otherwise another process, whose content is as good, was faster
            raise


def _umask() -> int:
    mask = os.umask(0)  # the only way to read it is to set it
    os.umask(mask)
    return mask


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically. Raise ValueError if it holds NaN or infinity, which JSON lacks."""
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def digest(content: Any, length: int = 12) -> str:
    """Return the first `length` hex digits of the SHA-256 of `content`'s canonical JSON."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_fingerprints(path: Path) -> list[list[str | int]]:
    """Return [name, size, modification time in ns] of a file, or of every file below a folder."""
    files = [path] if path.is_file() else _files_below(path)
    return [[str(file.relative_to(path.parent)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _files_below(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def is_locked(path: Path) -> bool:
    """Return True if a process holds this lock file.

    The test takes a shared lock, which needs no write permission and creates no file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would block its reader
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)  # also releases the shared lock
    return False
