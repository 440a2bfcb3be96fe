"""SLURM: a plan goes there in two phases, store by store, tied by dependencies.

Nothing on this side has to run while the jobs do: SLURM starts the runs of a model when its extraction is done.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sae_outliers.sweeps.scheduler import SCHEDULERS, HydraSweep, InFlight, Queue
from sae_outliers.sweeps.slurm.queue import slurm_queue, wait_for_end
from sae_outliers.sweeps.task import Task

if TYPE_CHECKING:
    from sae_outliers.config import RunConfig
    from sae_outliers.sweeps.plan import Plan

# Jobs submitted since the last write would be unknown after a kill; their runs' locks still keep others off
MAX_UNSAVED_S = 5.0


@SCHEDULERS.register("slurm")
class SlurmScheduler:
    """Imports of Submitit stand in the methods: `status` asks for the queue alone."""

    detached = True
    after_interrupt = "SLURM goes on with the others"

    def __init__(self, sweep: HydraSweep) -> None:
        self.folder = sweep.folder.absolute()

    @staticmethod
    def queue() -> Queue:
        return slurm_queue()

    def preview(self, planned: "Plan", cfg: "RunConfig") -> list[str]:
        """Return the scripts that would go to sbatch, of the first array of each kind."""
        from sae_outliers.sweeps.slurm.arrays import arrays_of
        from sae_outliers.sweeps.slurm.profile import load_site
        from sae_outliers.sweeps.slurm.submit import example_scripts

        site = load_site(cfg.site)
        return example_scripts(list(arrays_of(planned, cfg.pack, site.array_size())), site, self.folder)

    def submit(self, planned: "Plan", cfg: "RunConfig", others: InFlight, save: Callable[[], None]) -> dict[Task, str]:
        """Give the plan to sbatch. What it refuses is returned; the rest stands.

        Raises:
            ValueError: there is no sbatch, or the site's profile cannot be used.
        """
        from sae_outliers.sweeps.slurm.arrays import arrays_of
        from sae_outliers.sweeps.slurm.profile import load_site
        from sae_outliers.sweeps.slurm.submit import Submission, keep_activations_in
        from sae_outliers.sweeps.snapshot import take_snapshot

        save()  # before anything can go wrong, so that `make retry` knows the command
        if shutil.which("sbatch") is None:
            raise ValueError("hydra/launcher=slurm: there is no sbatch on the path; dry_run=true needs none")
        if not planned.jobs:
            return {}
        site, results_dir = load_site(cfg.site), Path(cfg.results_dir)
        if site.scratch:
            keep_activations_in(site.scratch, results_dir)
        code = take_snapshot(self.folder / "code", results_dir)
        submission = Submission(self.folder / "slurm", site, code, others)
        print(f"site={site.name}; what is submitted runs the code as it is now, in {code}", flush=True)
        saved = time.monotonic()
        try:
            for array in arrays_of(planned, cfg.pack, site.array_size()):
                submission.submit(array)
                if time.monotonic() - saved > MAX_UNSAVED_S:
                    save()
                    saved = time.monotonic()
        finally:
            save()
        return submission.refused

    def wait(self, planned: "Plan") -> dict[Task, str]:
        """Wait until no job is in the queue any more. A record is success, whatever SLURM says of the job."""
        wait_for_end(task.job for task in planned.tasks if task.job)
        return failures(planned.tasks)


def failures(tasks: Sequence[Task]) -> dict[Task, str]:
    """Return why each submitted job without a record has none, with the log that says so."""
    extractions = {task.store: task for task in tasks if task.kind == "extract"}
    return {
        task: _reason(task, extractions.get(task.store))
        for task in tasks
        if task.kind == "run" and task.job and not task.is_done()
    }


def _reason(task: Task, extraction: Task | None) -> str:
    from sae_outliers.sweeps.slurm.task import task_outcome

    outcome = task_outcome(task)
    if outcome is not None:
        return f"{outcome or 'it left no record'} (see {task.log})"
    if extraction and (outcome := task_outcome(extraction)):
        return f"no activations: {outcome} (see {extraction.log})"
    return "it never began: cancelled, or its extraction was"
