"""A plan through a launcher that ends when its jobs do, in two calls: extractions, then what stands on them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

if TYPE_CHECKING:
    from sae_outliers.sweeps.plan import Plan, Task


def launch_in_phases(launcher: Launcher, planned: "Plan") -> "dict[Task, str]":
    """Extractions, then the jobs whose activations are there; the jobs that failed, and why."""
    lacking = {task.store: reason for task, reason in _launch(launcher, planned.extractions, 0).items()}
    failures = {task: f"no activations: {lacking[task.store]}" for task in planned.jobs if task.store in lacking}
    ready = [task for task in planned.jobs if task.store not in lacking]
    return failures | _launch(launcher, ready, len(planned.extractions))


def _launch(launcher: Launcher, tasks: "Sequence[Task]", first: int) -> "dict[Task, str]":
    """Launch tasks, numbered from `first` on; the ones that failed, and why."""
    try:
        returns = launcher.launch([list(task.overrides) for task in tasks], first) if tasks else []
        reasons = {task: _reason(returned) for task, returned in zip(tasks, returns, strict=True)}
    except Exception as error:  # Submitit's launcher gives up at the first job that was killed
        reasons = {task: "" if task.is_done() else f"the launcher gave up: {_line(error)}" for task in tasks}
    # a launcher's word is not enough: SLURM calls a job completed whose Python raised
    return {t: r or "it left no record" for t, r in reasons.items() if r or not t.is_done()}


def _reason(returned: JobReturn) -> str:
    """Why a job failed, in one line; empty if it did not."""
    if returned.status == JobStatus.COMPLETED:
        return ""
    try:
        returned.return_value  # noqa: B018 - a failed job's value is raised when it is read
    except Exception as error:
        return _line(error)
    return "unknown"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
