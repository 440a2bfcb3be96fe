"""Report progress: a bar on a terminal, otherwise a plain line every few seconds."""

import sys
import time
from collections.abc import Iterable
from types import TracebackType

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15.0  # frequent enough to follow a job, and sparse enough for its log


def duration(seconds: float | None) -> str:
    """Return a time span for reading; empty for None, where it is not known."""
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Progress:
    """A context manager that reports how much of `total` is done."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._bar = tqdm(total=total, desc=title, unit=f" {unit}", disable=not sys.stderr.isatty(), leave=False)
        self._start, self._last_line = time.monotonic(), 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        self._bar.close()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._start

    def say(self, lines: Iterable[str]) -> None:
        """Print lines, above the bar where there is one."""
        for line in lines:
            self._bar.write(line, file=sys.stdout)
            sys.stdout.flush()

    def update(self, done: int, note: str = "") -> None:
        """Report that `done` units in total (not since the last call) are complete; `note` is appended."""
        self._bar.n = min(done, self._total)
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.refresh()
        seconds = self.seconds
        if self._bar.disable and seconds - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = seconds
            print(
                f"{self._title}: {done}/{self._total} {self._unit}, {seconds:.0f} s{note and f', {note}'}",
                file=sys.stderr,
                flush=True,
            )
