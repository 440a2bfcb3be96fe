"""What a sweep writes down of itself: its manifest, kept up to date."""

from pathlib import Path

from sae_outliers.sweeps.manifest import Launched, Manifest, write_manifest
from sae_outliers.sweeps.plan import Plan, Task, launched


class Ledger:
    """The manifest of a sweep, and what stands in it of each task of the plan."""

    def __init__(self, results_dir: Path, manifest: Manifest, planned: Plan) -> None:
        self.results_dir, self.manifest = results_dir, manifest
        self.launched: dict[Task, Launched] = {
            task: launched(task, results_dir) for task in (*planned.extractions, *planned.jobs)
        }
        manifest.tasks = list(self.launched.values())

    def log_to(self, folder: Path) -> None:
        """Local processes have a folder each, numbered in the order of the tasks."""
        for number, task in enumerate(self.manifest.tasks):
            task.log = str(folder / str(number) / "output.log")

    def write(self) -> None:
        write_manifest(self.results_dir, self.manifest)
