"""A plan on its way to SLURM, batch by batch: jobs, their dependencies, and what sbatch did not take."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from submitit.core.utils import FailedJobError, FailedSubmissionError

from sae_outliers.sweeps.manifest import Launched
from sae_outliers.sweeps.plan import Task
from sae_outliers.sweeps.slurm.arrays import Batch
from sae_outliers.sweeps.slurm.in_flight import UnderWay
from sae_outliers.sweeps.slurm.profile import Site
from sae_outliers.sweeps.slurm.sbatch import parameters, submit
from sae_outliers.sweeps.slurm.task import Submitted
from sae_outliers.sweeps.slurm.wait import mark


class Submission:
    """Notes each task's job and log in `launched`; `refused` has those that SLURM did not take, and why.

    Scripts, pickled tasks and logs lie below `folder`, in a folder for each store of activations.
    """

    def __init__(
        self, folder: Path, site: Site, code: Path, launched: Mapping[Task, Launched], others: UnderWay
    ) -> None:
        self.folder, self.site, self.code, self.launched, self.others = folder, site, code, launched, others
        self.refused: dict[Task, str] = {}
        self.extracting: dict[Path, str] = {}  # by store, the job of its extraction

    def submit(self, batch: Batch) -> None:
        lacking = [reason for task, reason in self.refused.items() if task.store == batch.store and not task.results]
        if lacking:
            self.refused |= dict.fromkeys(batch.tasks, f"no activations: {lacking[0]}")
            return
        try:
            jobs = self._submit(batch)
        except (ValueError, FailedJobError, FailedSubmissionError) as error:
            said = " ".join(str(error).split())
            self.refused |= dict.fromkeys(batch.tasks, f"not submitted: {said}")
            return
        if batch.kind == "extract":
            self.extracting[batch.store] = jobs[0]
        print(f"  {format_array(jobs)}: {batch.model} {batch.kind}, {len(batch.tasks)} task(s)", flush=True)

    def _submit(self, batch: Batch) -> list[str]:
        entries = [[self.launched[task] for task in pack] for pack in batch.packs]
        packs = [Submitted([(mark(entry), tuple(entry.overrides)) for entry in pack]) for pack in entries]
        options = parameters(batch, self.site, self.code, self.after(batch))
        jobs = submit(self.folder / batch.store.name, options, packs)
        for job, pack in zip(jobs, entries, strict=True):
            for entry in pack:
                entry.job, entry.log = job.job_id, str(job.paths.stderr)
        return [job.job_id for job in jobs]

    def after(self, batch: Batch) -> str | None:
        """Runs start when their extraction has succeeded; an extraction, when others' of its store have ended."""
        if batch.kind == "run":
            job = self.extracting.get(batch.store)
            return f"afterok:{job}" if job else None
        others = self.others.extractions.get(batch.store)
        return f"afterany:{':'.join(sorted(set(others)))}" if others else None


def keep_activations_in(scratch: str, results_dir: Path) -> None:
    """Make results_dir/activations a link to the site's scratch folder, unless it is there already."""
    link, folder = results_dir / "activations", Path(os.path.expandvars(scratch)).expanduser() / "activations"
    if not link.exists() and not link.is_symlink():
        folder.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder.absolute())


def format_array(jobs: Sequence[str]) -> str:
    """The tasks of an array, as SLURM writes them."""
    return jobs[0] if len(jobs) == 1 else f"{jobs[0].partition('_')[0]}_[0-{len(jobs) - 1}]"
