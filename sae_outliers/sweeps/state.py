"""Status of each run of all sweeps: from records, locks, the schedulers' queues and the sweeps' manifests.

done: its record is there. running: its lock is held, or its job runs. queued: its job waits; in local processes, it
has not begun and others of its sweep are at work. failed: it was submitted or has begun, is no longer in the queue and
has no record. missing: it was never submitted, or its local sweep ended before it began.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_outliers.results.record import is_finished
from sae_outliers.sweeps.manifest import Manifest
from sae_outliers.sweeps.scheduler import SCHEDULERS, NoAnswer, Queue
from sae_outliers.sweeps.task import Task
from sae_outliers.utils.files import is_locked

STATES = ("done", "running", "queued", "failed", "missing")  # where sweeps differ about a run, the first of them holds


@dataclass(frozen=True)
class RunState:
    """A run's folder, its state, and the newest task that says so; None where no sweep launched it."""

    directory: Path
    state: str
    task: Task | None

    @property
    def model(self) -> str:
        return self.directory.parents[1].name

    @property
    def layer(self) -> str:
        return self.directory.parent.name


class Sweeps:
    """The sweeps below a results_dir, as they stand at one moment.

    Attributes:
        manifests: the newest first.
        no_answer: what a scheduler that cannot be asked says; empty where all have answered.
    """

    def __init__(self, results_dir: Path, manifests: Sequence[Manifest]) -> None:
        self.results_dir, self.manifests = results_dir, manifests
        self.no_answer = ""
        self._queues = {launcher: self._queue(launcher) for launcher in {m.launcher for m in manifests}}
        self._locked: dict[Path, bool] = {}

    def runs(self) -> list[RunState]:
        """Return every run of a manifest, and those that are done or running without one; sorted by folder."""
        found: dict[Path, RunState] = {}
        for manifest in self.manifests:
            at_work = self._is_at_work(manifest)
            for task in manifest.tasks:
                for directory in task.results:
                    run = RunState(directory, self._state(directory, task, manifest, at_work), task)
                    found[directory] = min(found.get(directory, run), run, key=lambda r: STATES.index(r.state))
        others = {path.parent for path in (self.results_dir / "runs").glob("*/*/*/config.yaml")} - found.keys()
        for directory in others:
            state = "done" if is_finished(directory) else "running" if self._is_locked(directory) else None
            if state:
                found[directory] = RunState(directory, state, None)
        return [found[directory] for directory in sorted(found, key=_by_layer)]

    def extractions(self) -> list[Task]:
        """Return those that run now, of each store the newest."""
        newest = {task.store: (task, m) for m in reversed(self.manifests) for task in extractions_of(m)}
        return [task for task, manifest in newest.values() if self._runs_now(task.store, task, manifest)]

    def extraction_for(self, task: Task) -> Task | None:
        """Return the newest extraction that fills the store of this task."""
        found = (e for manifest in self.manifests for e in extractions_of(manifest) if e.store == task.store)
        return next(found, None)

    def is_unsure(self) -> bool:
        """Return whether jobs are taken for failed because their scheduler does not answer."""
        return bool(self.no_answer) and any(r.state == "failed" and r.task and r.task.job for r in self.runs())

    def _queue(self, launcher: str) -> Queue:
        try:
            return SCHEDULERS[launcher].queue()
        except NoAnswer as error:
            self.no_answer = str(error)
            return {}

    def _state(self, directory: Path, task: Task, manifest: Manifest, at_work: bool) -> str:
        if is_finished(directory):
            return "done"
        if self._runs_now(directory, task, manifest):
            return "running"
        if task.job:
            return "queued" if task.job in self._queues[manifest.launcher] else "failed"
        if task.log is None:  # no scheduler has accepted it
            return "missing"
        return "failed" if Path(task.log).exists() else "queued" if at_work else "missing"

    def _runs_now(self, directory: Path, task: Task, manifest: Manifest) -> bool:
        return self._queues[manifest.launcher].get(task.job or "") == "running" or self._is_locked(directory)

    def _is_at_work(self, manifest: Manifest) -> bool:
        """Return whether one of the sweep's tasks holds its lock: then its others in local processes wait."""
        folders = (folder for task in manifest.tasks if not task.job for folder in (task.results or [task.store]))
        return any(self._is_locked(folder) for folder in folders)

    def _is_locked(self, directory: Path) -> bool:
        if directory not in self._locked:
            self._locked[directory] = is_locked(directory / ".lock")
        return self._locked[directory]


def extractions_of(manifest: Manifest) -> Iterable[Task]:
    return (task for task in manifest.tasks if task.kind == "extract")


def _by_layer(directory: Path) -> tuple[str, int, str]:
    layer = directory.parent.name
    return directory.parents[1].name, int(layer) if layer.isdigit() else 0, directory.name
