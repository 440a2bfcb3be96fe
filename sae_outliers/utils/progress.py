"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15.0


def duration(seconds: float | None) -> str:
    """Return a time span for reading; empty for None, where it is not known."""
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Progress:
    """Use as a context; `update(done)` takes the absolute amount."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._bar = tqdm(total=total, desc=title, unit=f" {unit}", disable=not sys.stderr.isatty(), leave=False)
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        self._bar.close()

    def update(self, done: int, note: str = "") -> None:
        self._bar.n = min(done, self._total)
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.refresh()
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            seconds = now - self._start
            print(
                f"{self._title}: {done}/{self._total} {self._unit}, {seconds:.0f} s {note}",
                file=sys.stderr,
                flush=True,
            )
