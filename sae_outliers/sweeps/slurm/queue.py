"""SLURM's answers: its commands, the user's jobs, and waiting for their end."""

import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterable

from sae_outliers.sweeps.scheduler import NoAnswer, Queue
from sae_outliers.utils.progress import Progress

# SLURM's states of a job that has yet to start
WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
TIMEOUT_S = 60  # a controller that is busy with large arrays may take most of it
POLL_S = (2.0, 15.0)  # between two questions to squeue: in the first minute, and after it


def slurm_output(*command: str) -> str | None:
    """Return the output of one of SLURM's commands; None where it is not there, fails or takes too long."""
    if shutil.which(command[0]) is None:
        return None
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S).stdout
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None


def slurm_queue() -> Queue:
    """Return the user's jobs in SLURM's queue, array tasks one by one. Raises NoAnswer."""
    listed = slurm_output("squeue", f"--user={os.getuid()}", "--array", "--noheader", "--format=%i %T")
    if listed is None:
        raise NoAnswer("squeue does not answer")
    states = dict(line.split(maxsplit=1) for line in listed.splitlines())
    return {job: "queued" if state in WAITING else "running" for job, state in states.items()}


def wait_for_end(jobs: Iterable[str]) -> None:
    """Return when none of the jobs is in the queue any more.

    A job is over when it is missing twice in a row: one whose node failed is requeued, and SLURM's states in between
    are not to be trusted. While squeue does not answer, nothing is over.
    """
    left = set(jobs)
    total, missing, start = len(left), Counter[str](), time.monotonic()
    with Progress("SLURM", total, "tasks") as progress:
        while left:
            try:
                queue = slurm_queue()
            except NoAnswer as error:
                progress.update(total - len(left), str(error))
            else:
                present = left & queue.keys()
                missing = Counter({job: missing[job] + 1 for job in left - present})
                left -= {job for job, times in missing.items() if times > 1}
                waiting = sum(queue[job] == "queued" for job in present)
                progress.update(total - len(left), f"{len(present) - waiting} running, {waiting} queued")
            if left:
                time.sleep(POLL_S[time.monotonic() - start > 60])
