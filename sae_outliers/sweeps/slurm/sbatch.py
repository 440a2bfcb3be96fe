"""From a batch to sbatch, through Submitit's executor: its parameters, its script, its submission."""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor, SlurmJob

from sae_outliers.sweeps.slurm.arrays import Batch
from sae_outliers.sweeps.slurm.profile import Site
from sae_outliers.sweeps.slurm.task import Submitted

TIMEOUTS = 1000  # times that a task is requeued at its time limit: each time it goes on from its checkpoint


def parameters(batch: Batch, site: Site, code: Path, after: str | None = None) -> dict[str, Any]:
    """What Submitit's SlurmExecutor is told of a batch; `after` is a dependency as sbatch takes it.

    Raises:
        ValueError: no GPU of the site is large enough.
    """
    cost = batch.largest()
    options: dict[str, Any] = {
        "job_name": f"{batch.model} {batch.kind}",
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "gres": site.gres(cost),
        "cpus_per_task": site.cpus,
        "mem": f"{site.memory_gb(cost)}GB",
        "time": site.minutes(cost),
        "signal_delay_s": site.signal_delay_s,
        "array_parallelism": site.array_parallelism,
        "dependency": after,
        "setup": [*site.setup, *environment(site, code)],
        "additional_parameters": {"requeue": True, **({"kill-on-invalid-dep": "yes"} if after else {}), **site.extra},
    }
    return {key: value for key, value in options.items() if value is not None}


def environment(site: Site, code: Path) -> list[str]:
    """Lines of shell by which a task runs the code as it was when it was submitted."""
    path = ":".join(shlex.quote(str(folder)) for folder in (code, code / "launch"))
    lines = [
        f"export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONSAFEPATH=1  # or else the folder that sbatch was called in would come first",
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}",
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # which srun does not take over since SLURM 22.05",
    ]
    if site.scratch:
        lines.append(f'export HF_HOME="${{HF_HOME:-{site.scratch}/huggingface}}"')
    return lines


def executor(folder: Path, options: dict[str, Any]) -> SlurmExecutor:
    """Submitit's executor, which writes scripts on a machine without SLURM, too."""

    class Anywhere(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1

    made = Anywhere(folder, max_num_timeout=TIMEOUTS)
    made.update_parameters(**options)
    return made


def script(folder: Path, options: dict[str, Any], tasks: int) -> str:
    """What Submitit would give to sbatch for an array of so many tasks; one is no array."""
    made = executor(folder, options)
    if tasks > 1:
        made.parameters["map_count"] = tasks
    return made._make_submission_file_text(made._submitit_command_str, "")


def submit(folder: Path, options: dict[str, Any], tasks: Sequence[Submitted]) -> list[SlurmJob[None]]:
    """A job for each task, all in one array.

    Raises:
        submitit.core.utils.FailedJobError: what sbatch answered where it refused.
    """
    with outside_of_jobs():
        return executor(folder, options).submit_array(tasks)  # type: ignore[return-value]


@contextmanager
def outside_of_jobs() -> Iterator[None]:
    """Within a job, such as an interactive one, sbatch would take over what SLURM has set there for that job."""
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
