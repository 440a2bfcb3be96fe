"""What a sweep in local processes says while it runs: its first result, a line per model, and how long it will take."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sae_outliers.results.describe import describe_model, describe_run
from sae_outliers.results.integrity import read_if_whole
from sae_outliers.sweeps.task import Task
from sae_outliers.sweeps.throughput import extraction_throughput, run_throughput
from sae_outliers.utils.progress import duration

Row = dict[str, Any]

OVERHEAD = 1e11  # operations that a core does while a task starts and writes its files
TOLD_FROM = 0.05  # of the work that is left: before, what has ended says little of what has not


class Live:
    """Follows the tasks of a sweep as they end."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self._waiting = Counter(task.model for task in tasks)
        self._rows: dict[str, list[Row]] = defaultdict(list)
        self._work = sum(map(_work, tasks))
        self._ended = 0.0
        self._there: dict[int, float] = {}  # work of a task that an earlier sweep has done, from when it began to run

    def ended(self, index: int) -> Iterator[str]:
        """Yield what there is to say now that a task has ended, failed or not."""
        task = self.tasks[index]
        self._ended += _work(task)
        self._waiting[task.model] -= 1
        is_first = not self._rows
        rows = [row for row in map(_read, task.results) if row is not None]
        if not rows and task.model not in self._rows:
            return
        self._rows[task.model] += rows
        if is_first:
            yield from map(describe_run, rows)
        if self._waiting[task.model] == 0 and len(self._rows[task.model]) > len(rows):
            yield describe_model(self._rows[task.model])

    def time_left(self, seconds: float, running: Iterable[int] = ()) -> str:
        """Say how long the rest takes, after so many seconds, with these tasks running; nothing while it is early."""
        done = self._ended
        for index in running:
            reached = _work(self.tasks[index]) * _share_done(self.tasks[index])
            self._there.setdefault(index, reached)
            done += reached
        done_here, left = done - sum(self._there.values()), self._work - done
        if not 0 < left < done_here / TOLD_FROM:
            return ""
        return f"about {duration(seconds * left / done_here)} left"


def _work(task: Task) -> float:
    return OVERHEAD + task.cost.operations


def _share_done(task: Task) -> float:
    """Return how far a task that runs is, from its log: of the tokens extracted, or of the steps of its training."""
    extracts = task.kind == "extract"
    at = extraction_throughput(task.model, task.log) if extracts else run_throughput(task.results[0], task.log)
    return at.done / at.total if at.total else 0.0


def _read(directory: Path) -> Row | None:
    return read_if_whole(directory / "record.json") if (directory / "record.json").is_file() else None
