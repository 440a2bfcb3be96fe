"""What has become of each run of all sweeps: from records, locks, SLURM's queue and the sweeps' manifests.

done: its record is there. running: its lock is held, or SLURM runs its job. queued: SLURM has its job waiting, or,
in local processes, others of its sweep are at work and it has not begun. failed: it was submitted, is no longer in
the queue and has no record. missing: it never was submitted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_outliers.results.layout import is_finished
from sae_outliers.sweeps.manifest import Launched, Manifest
from sae_outliers.sweeps.slurm.queue import WAITING, Queue
from sae_outliers.utils.files import is_locked

STATES = ("done", "running", "queued", "failed", "missing")  # of what several sweeps say of a run, the first holds


@dataclass(frozen=True)
class Run:
    """A run's folder, its state, and the task that says so: the newest such; None where no sweep launched it."""

    directory: Path
    state: str
    task: Launched | None

    @property
    def model(self) -> str:
        return self.directory.parents[1].name

    @property
    def layer(self) -> str:
        return self.directory.parent.name


class Sweeps:
    """The sweeps below a results_dir, as they stand at one moment; `manifests` has the newest first."""

    def __init__(self, results_dir: Path, manifests: Sequence[Manifest], queue: Queue | None) -> None:
        self.results_dir, self.manifests, self.queue = results_dir, manifests, queue
        self.locked: dict[Path, bool] = {}
        self.at_work = [self._is_at_work(manifest) for manifest in manifests]

    def runs(self) -> list[Run]:
        """Every run of a manifest, and those that are done or running without one; sorted by folder."""
        said: dict[Path, Run] = {}
        for manifest, at_work in zip(self.manifests, self.at_work, strict=True):
            for task in manifest.tasks:
                for result in task.results:
                    directory = self.results_dir / result
                    run = Run(directory, self._state(directory, task, manifest, at_work), task)
                    said[directory] = min(said.get(directory, run), run, key=lambda r: STATES.index(r.state))
        others = {path.parent for path in (self.results_dir / "runs").glob("*/*/*/config.yaml")} - said.keys()
        for directory in others:
            state = "done" if is_finished(directory) else "running" if self._is_locked(directory) else None
            if state:
                said[directory] = Run(directory, state, None)
        return [said[directory] for directory in sorted(said, key=_by_number)]

    def extractions(self) -> list[Launched]:
        """Those that run now."""
        tasks = {task.store: task for manifest in self.manifests[::-1] for task in extractions_of(manifest)}
        return [task for task in tasks.values() if self._runs_now(task, self.results_dir / task.store)]

    def extraction_for(self, task: Launched) -> Launched | None:
        """The newest extraction that fills the store of this task."""
        found = (e for manifest in self.manifests for e in extractions_of(manifest) if e.store == task.store)
        return next(found, None)

    def needs_squeue(self) -> bool:
        """Whether there are jobs of SLURM's of which nothing can be told, since it does not answer."""
        return self.queue is None and any(run.state == "failed" and run.task and run.task.job for run in self.runs())

    def _state(self, directory: Path, task: Launched, manifest: Manifest, at_work: bool) -> str:
        if is_finished(directory):
            return "done"
        if self._runs_now(task, directory):
            return "running"
        if manifest.launcher == "slurm":
            return "missing" if task.job is None else "failed" if self._in_queue(task) is None else "queued"
        begun = Path(task.log).exists() if task.log else directory.exists()
        return "failed" if begun else "queued" if at_work else "missing"

    def _runs_now(self, task: Launched, directory: Path) -> bool:
        return self._in_queue(task) not in (None, *WAITING) or self._is_locked(directory)

    def _in_queue(self, task: Launched) -> str | None:
        return (self.queue or {}).get(task.job or "")

    def _is_at_work(self, manifest: Manifest) -> bool:
        """Whether a local sweep goes on: one of its runs or extractions holds its lock."""
        places = (place for task in manifest.tasks for place in (task.results or [task.store]))
        return manifest.launcher == "local" and any(self._is_locked(self.results_dir / place) for place in places)

    def _is_locked(self, directory: Path) -> bool:
        if directory not in self.locked:
            self.locked[directory] = is_locked(directory / ".lock")
        return self.locked[directory]


def extractions_of(manifest: Manifest) -> Iterable[Launched]:
    return (task for task in manifest.tasks if task.kind == "extract")


def _by_number(directory: Path) -> tuple[str, int, str]:
    layer = directory.parent.name
    return directory.parents[1].name, int(layer) if layer.isdigit() else 0, directory.name
