"""Files that are whole or absent: written beside their place and renamed into it."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a path to write to; when the block ends without an error, it becomes `path` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        os.chmod(beside, 0o666 & ~_umask())  # safetensors makes files that only their owner can read
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)  # the only way to read it is to set it
    os.umask(mask)
    return mask


def write_json(path: Path, content: Any) -> None:
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def digest(content: Any, length: int = 12) -> str:
    """The first `length` hex digits of the SHA-256 of the canonical JSON of `content`."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


def file_fingerprints(path: Path) -> list[list[str | int]]:
    """Name, size and time of the last change of a file, or of all files below a folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return [[str(file.relative_to(path.parent)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def is_locked(path: Path) -> bool:
    """Whether a process holds this lock file. A shared lock asks, which needs no right to write and creates no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)  # which releases it
    return False
