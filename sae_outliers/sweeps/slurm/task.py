"""What a SLURM task runs: a few runs or an extraction, one after the other in one process, each to its own record."""

import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from submitit.core.utils import DelayedSubmission, UncompletedJobError

from sae_outliers.paths import CONF
from sae_outliers.runs.execute import composed_variants, run
from sae_outliers.sweeps.task import Task
from sae_outliers.utils.boundary import sentence_of

FAILED, DONE = "task failed: ", "task done: "  # with the task's key: these lines of the log say how it ended


class SlurmTask:
    """Runs tasks, given by their keys and overrides, and can be pickled.

    It can be submitted again as it is: what has a record is skipped, the rest resumes from its checkpoint.

    Raises:
        Exception: that of the last task that failed, after all others have run.
    """

    def __init__(self, tasks: Sequence[tuple[str, tuple[str, ...]]]) -> None:
        self.tasks = list(tasks)

    def __call__(self) -> None:
        logging.basicConfig(level=logging.INFO, format="[%(asctime)s][%(name)s][%(levelname)s] - %(message)s")
        errors = [error for key, overrides in self.tasks if (error := _run(key, overrides))]
        if errors:
            raise errors[-1]

    def checkpoint(self) -> DelayedSubmission:
        """Return what Submitit requeues."""
        return DelayedSubmission(self)


def _run(key: str, overrides: Sequence[str]) -> Exception | None:
    """Run one task as the command line would; return the error that it ended with."""
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", list(overrides))
            variants = composed_variants(cfg, overrides)  # type: ignore[arg-type]
        run(cfg, variants)  # type: ignore[arg-type]
    except UncompletedJobError:  # Submitit's, when it has been told to stop and does not requeue
        raise
    except Exception as error:
        traceback.print_exc()
        print(FAILED, key, ": ", sentence_of(error), sep="", file=sys.stderr, flush=True)
        return error
    print(DONE, key, sep="", file=sys.stderr, flush=True)
    return None


def task_key(task: Task) -> str:
    """Return what a task is known by in its log: its first folder, from results_dir on."""
    parts = (task.results[0] if task.results else task.store).parts
    return "/".join(parts[-4:] if task.results else parts[-2:])  # runs/<model>/<layer>/<run id>, activations/<store>


def task_outcome(task: Task) -> str | None:
    """Return how the log says that a task ended: empty if it is done, its error, or the last line where it was killed.

    None where there is no log, since it never began.
    """
    if task.log is None or not Path(task.log).is_file():
        return None
    done, failed = DONE + task_key(task), f"{FAILED}{task_key(task)}: "
    lines = [line.strip() for line in Path(task.log).read_text(errors="replace").splitlines()]
    for line in reversed(lines):
        if line == done:
            return ""
        if line.startswith(failed):
            return line.removeprefix(failed)
    informative = [line for line in lines if line and not line.startswith("srun: ")]
    return (informative or lines or ["it wrote nothing"])[-1]
