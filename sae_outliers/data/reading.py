"""One error for whatever a reading library raises: a ValueError that names the file."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")

ON_ERROR = (None, "refuse", "skip")


class UnreadableFile(ValueError):
    """A file that is damaged, or is not what its name says."""


@contextmanager
def reading(file: Path | str, advice: str = "it is damaged or cut short: copy or write it again") -> Iterator[None]:
    """Raise UnreadableFile with the file's name and `advice` instead of any error inside.

    A ValueError that already names the file is raised as it is, and so is FileNotFoundError.
    """
    try:
        yield
    except UnreadableFile:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file} does not exist") from error
    except ModuleNotFoundError:
        raise
    except Exception as error:  # libraries raise anything: struct.error, KeyError, SafetensorError, ArrowInvalid ...
        if isinstance(error, ValueError) and str(file) in str(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnreadableFile(f"{file} cannot be read ({reason}): {advice}") from error


class Tolerance:
    """What to do with files that cannot be read: refuse the first, or skip them, each with a warning and a count."""

    def __init__(self, on_error: str | None) -> None:
        if on_error not in ON_ERROR:
            raise ValueError(f"data.source.on_error={on_error} does not exist: use refuse or skip")
        self.skips = on_error == "skip"
        self.skipped = 0

    def attempt(self, read: Callable[[], Iterator[T]]) -> Iterator[T]:
        """Yield what `read` yields, up to where it fails if such files are skipped."""
        try:
            yield from read()
        except UnreadableFile as error:
            if not self.skips:
                raise UnreadableFile(f"{error}, or leave such files out by data.source.on_error=skip") from error
            self.skipped += 1
            log.warning("file %d that is skipped: %s", self.skipped, error)
