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

FAILED, DONE = "task failed: ", "task done: "  # with the task's mark: they open lines of the log, which `ended` reads

Marked = tuple[str, tuple[str, ...]]  # what a task is known by in its log, and its overrides


class Submitted:
    """Picklable, and can be submitted again as it is: what has a record is skipped, the rest goes on from checkpoints.

    Raises:
        Exception: that of the last task that failed, after all others have run.
    """

    def __init__(self, tasks: Sequence[Marked]) -> None:
        self.tasks = list(tasks)

    def __call__(self) -> None:
        logging.basicConfig(level=logging.INFO, format="[%(asctime)s][%(name)s][%(levelname)s] - %(message)s")
        errors = [error for mark, overrides in self.tasks if (error := _run(mark, overrides))]
        if errors:
            raise errors[-1]

    def checkpoint(self) -> DelayedSubmission:
        """What Submitit requeues."""
        return DelayedSubmission(self)


def _run(mark: str, overrides: Sequence[str]) -> Exception | None:
    """Run one task as the command line would; the error that it ended with."""
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", list(overrides))
            variants = composed_variants(cfg, overrides)  # type: ignore[arg-type]
        run(cfg, variants)  # type: ignore[arg-type]
    except UncompletedJobError:  # Submitit's, when it has been told to stop and does not requeue
        raise
    except Exception as error:
        traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        print(FAILED, mark, ": ", text, sep="", file=sys.stderr, flush=True)
        return error
    print(DONE, mark, sep="", file=sys.stderr, flush=True)
    return None


def ended(log: Path, mark: str) -> str | None:
    """How the log says that a task ended: empty if it was done, its error, or the log's last words where it was killed.

    None where there is no log, since it never began.
    """
    if not log.is_file():
        return None
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    for line in reversed(lines):
        if line == DONE + mark:
            return ""
        if line.startswith(f"{FAILED}{mark}: "):
            return line.removeprefix(f"{FAILED}{mark}: ")
    of_interest = [line for line in lines if line and not line.startswith("srun: ")]
    return (of_interest or lines or ["it wrote nothing"])[-1]
