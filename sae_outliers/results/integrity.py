"""Whether a run's files are as they were written: its record holds a digest of each, and one of itself.

Records of earlier versions have none, and are taken as they are.
"""

import hashlib
import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

from sae_outliers.utils.files import digest, file_digest, read_regular

log = logging.getLogger(__name__)

DIGESTS = "digests"  # SHA-256 of the run's files by name; "record": of all other columns
VERIFIED = ("config.yaml", "features.parquet", "curves.parquet", "sae.safetensors")


def own_digest(row: dict[str, Any]) -> str:
    return digest({name: value for name, value in row.items() if name != DIGESTS}, 64)


def read_whole(path: Path) -> dict[str, Any]:
    """Return a record. Raise ValueError if it is none, or not as it was written; OSError if it is no file."""
    try:
        row = json.loads(read_regular(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it and run its job again") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path} is not a record; delete it and run its job again")
    if DIGESTS in row and not (isinstance(row[DIGESTS], dict) and row[DIGESTS].get("record") == own_digest(row)):
        raise ValueError(f"{path} is damaged: it is not as it was written; delete it and run its job again")
    return row


def read_if_whole(path: Path) -> dict[str, Any] | None:
    """Return a record; None if it cannot be read or is not as it was written, of which a warning tells once."""
    try:
        return read_whole(path)
    except (OSError, ValueError) as error:
        _warn_once(f"{error}. It counts as missing")
        return None


@cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def verified(directory: Path, name: str, digests: Any) -> bytes:
    """Return the content of one of the run's files, whose digest is in `digests`, its record's; older ones have none.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not as it was written.
    """
    content = read_regular(directory / name)
    expected = digests.get(name) if isinstance(digests, dict) else None
    if expected is not None and hashlib.sha256(content).hexdigest() != expected:
        raise damaged(directory / name)
    return content


def damaged(path: Path, reason: object = "its digest is not the one in record.json") -> ValueError:
    return ValueError(f"{path} is damaged ({reason}): delete {path.parent} and run its job again")


def check_file(path: Path) -> None:
    """Raise ValueError if a run's file is not the one whose digest is in the record beside it, where there is one."""
    record = path.with_name("record.json")
    expected = read_whole(record).get(DIGESTS, {}).get(path.name) if record.is_file() else None
    if expected is not None and file_digest(path) != expected:
        raise damaged(path)
