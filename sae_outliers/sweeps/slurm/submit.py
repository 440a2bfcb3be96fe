"""Submit a plan to SLURM through Submitit, array by array: scripts, jobs, dependencies, and what sbatch refuses."""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor, SlurmJob
from submitit.core.utils import FailedJobError, FailedSubmissionError

from sae_outliers.sweeps.scheduler import InFlight
from sae_outliers.sweeps.slurm.arrays import Array
from sae_outliers.sweeps.slurm.profile import Site
from sae_outliers.sweeps.slurm.task import SlurmTask, task_key
from sae_outliers.sweeps.task import Task
from sae_outliers.utils.memory import ENVIRONMENT

MAX_TIMEOUTS = 1000  # times that a task is requeued at its time limit: each time it resumes from its checkpoint


class Submission:
    """Gives arrays to sbatch and fills in their tasks' jobs and logs; `refused` has those that SLURM did not take.

    Scripts, pickled tasks and logs lie below `folder`, in a folder for each store of activations.
    """

    def __init__(self, folder: Path, site: Site, code: Path, others: InFlight) -> None:
        self.folder, self.site, self.code, self.others = folder, site, code, others
        self.refused: dict[Task, str] = {}
        self.extracting: dict[Path, str] = {}  # by store, the job of its extraction

    def submit(self, array: Array) -> None:
        lacking = [reason for task, reason in self.refused.items() if task.store == array.store and not task.results]
        if lacking:
            self.refused |= dict.fromkeys(array.tasks, f"no activations: {lacking[0]}")
            return
        try:
            jobs = self._submit(array)
        except (ValueError, FailedJobError, FailedSubmissionError) as error:
            reason = " ".join(str(error).split())
            self.refused |= dict.fromkeys(array.tasks, f"not submitted: {reason}")
            return
        if array.kind == "extract":
            self.extracting[array.store] = jobs[0]
        print(f"  {format_array(jobs)}: {array.model} {array.kind}, {len(array.tasks)} task(s)", flush=True)

    def _submit(self, array: Array) -> list[str]:
        packs = [SlurmTask([(task_key(task), task.overrides) for task in pack]) for pack in array.packs]
        options = parameters(array, self.site, self.code, self.dependency(array))
        jobs = _submit_array(self.folder / array.store.name, options, packs)
        for job, pack in zip(jobs, array.packs, strict=True):
            for task in pack:
                task.job, task.log = job.job_id, str(job.paths.stderr)
        return [job.job_id for job in jobs]

    def dependency(self, array: Array) -> str | None:
        """Let runs start when their extraction has succeeded; an extraction, when others' of its store have ended."""
        if array.kind == "run":
            job = self.extracting.get(array.store)
            return f"afterok:{job}" if job else None
        others = self.others.extractions.get(array.store)
        return f"afterany:{':'.join(sorted(set(others)))}" if others else None


def parameters(array: Array, site: Site, code: Path, dependency: str | None = None) -> dict[str, Any]:
    """Return what Submitit's SlurmExecutor is told of an array; `dependency` is as sbatch takes it.

    Raises:
        ValueError: no GPU of the site is large enough.
    """
    cost = array.largest()
    options: dict[str, Any] = {
        "job_name": f"{array.model} {array.kind}",
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "gres": site.gres(cost),
        "cpus_per_task": site.cpus,
        "mem": f"{site.memory_gb(cost)}GB",
        "time": site.minutes(cost),
        "signal_delay_s": site.signal_delay_s,
        "array_parallelism": site.array_parallelism,
        "dependency": dependency,
        "setup": [*site.setup, *environment(site, code)],
        "additional_parameters": {
            "requeue": True,
            **({"kill-on-invalid-dep": "yes"} if dependency else {}),
            **site.extra,
        },
    }
    return {key: value for key, value in options.items() if value is not None}


def environment(site: Site, code: Path) -> list[str]:
    """Return lines of shell by which a task runs the code as it was when it was submitted."""
    path = ":".join(shlex.quote(str(folder)) for folder in (code, code / "launch"))
    lines = [
        f"export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONSAFEPATH=1  # or else the folder that sbatch was called in would come first",
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}",
        *(f"export {name}=${{{name}:-{value}}}" for name, value in ENVIRONMENT.items()),
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # which srun does not take over since SLURM 22.05",
    ]
    if site.scratch:
        lines.append(f'export HF_HOME="${{HF_HOME:-{site.scratch}/huggingface}}"')
    return lines


def script(folder: Path, options: dict[str, Any], tasks: int) -> str:
    """Return what Submitit would give to sbatch for an array of so many tasks; one is no array."""
    executor = _executor(folder, options)
    if tasks > 1:
        executor.parameters["map_count"] = tasks
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def example_scripts(arrays: Sequence[Array], site: Site, folder: Path) -> list[str]:
    """Return the script of the first array of each kind below a title; job ids are not known yet."""
    first = {array.kind: array for array in reversed(arrays)}
    extracted = {array.store for array in arrays if array.kind == "extract"}
    found = []
    for kind, array in sorted(first.items()):
        dependency = "afterok:<job of its extraction>" if kind == "run" and array.store in extracted else None
        options = parameters(array, site, folder / "code", dependency)
        text = script(folder / "slurm" / array.store.name, options, len(array.packs))
        found += [f"--- sbatch: {array.model} {kind} ---", text]
    return found


def _executor(folder: Path, options: dict[str, Any]) -> SlurmExecutor:
    """Return Submitit's executor, which here writes scripts on a machine without SLURM, too."""

    class Anywhere(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1

    executor = Anywhere(folder, max_num_timeout=MAX_TIMEOUTS)
    executor.update_parameters(**options)
    return executor


def _submit_array(folder: Path, options: dict[str, Any], tasks: Sequence[SlurmTask]) -> list[SlurmJob[None]]:
    """Submit a job for each task, all in one array.

    Raises:
        submitit.core.utils.FailedJobError: what sbatch answered where it refused.
    """
    with outside_of_jobs():
        return _executor(folder, options).submit_array(tasks)  # type: ignore[return-value]


@contextmanager
def outside_of_jobs() -> Iterator[None]:
    """Hide the job that this process runs in, such as an interactive one, whose settings sbatch would take over."""
    inherited = {key: os.environ[key] for key in os.environ if key.startswith(("SLURM_", "SRUN_", "SUBMITIT_"))}
    inherited.pop("SLURM_CONF", None)
    if "SLURM_JOB_ID" not in inherited:
        yield
        return
    for key in inherited:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(inherited)


def keep_activations_in(scratch: str, results_dir: Path) -> None:
    """Make results_dir/activations a link to the site's scratch folder, unless it is there already."""
    link, folder = results_dir / "activations", Path(os.path.expandvars(scratch)).expanduser() / "activations"
    if not link.exists() and not link.is_symlink():
        folder.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder.absolute())


def format_array(jobs: Sequence[str]) -> str:
    """Return the tasks of an array, as SLURM writes them."""
    return jobs[0] if len(jobs) == 1 else f"{jobs[0].partition('_')[0]}_[0-{len(jobs) - 1}]"
