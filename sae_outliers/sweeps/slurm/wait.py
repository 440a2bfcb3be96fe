"""Waiting for jobs on SLURM, and what became of their tasks. A record is success, whatever SLURM says of the job."""

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from sae_outliers.sweeps.manifest import Launched
from sae_outliers.sweeps.plan import Task
from sae_outliers.sweeps.slurm.queue import WAITING, slurm_queue
from sae_outliers.sweeps.slurm.task import ended
from sae_outliers.utils.progress import Progress

SECONDS = (2.0, 15.0)  # between two questions to squeue: at first, and after a minute


def wait_for_end(launched: Mapping[Task, Launched]) -> None:
    """Return when none of the jobs is in the queue any more.

    A job is over when it is missing twice in a row: one whose node failed is requeued, and SLURM's states in between
    are not to be trusted. While squeue does not answer, nothing is over.
    """
    left = {entry.job for entry in launched.values() if entry.job}
    total, missing, start = len(left), Counter[str](), time.monotonic()
    with Progress("SLURM", total, "tasks") as progress:
        while left:
            queue = slurm_queue()
            if queue is not None:
                there = left & queue.keys()
                missing = Counter({job: missing[job] + 1 for job in left - there})
                left -= {job for job, times in missing.items() if times > 1}
                waiting = sum(queue[job] in WAITING for job in there)
                progress.update(total - len(left), f"{len(there) - waiting} running, {waiting} queued")
            else:
                progress.update(total - len(left), "squeue does not answer")
            if left:
                time.sleep(SECONDS[time.monotonic() - start > 60])


def outcome(launched: Mapping[Task, Launched]) -> dict[Task, str]:
    """Wait for the end of all jobs; the runs that failed, and why."""
    wait_for_end(launched)
    return failures(launched)


def failures(launched: Mapping[Task, Launched]) -> dict[Task, str]:
    """Why each job without a record has none, with the log that says so."""
    fillers = {task.store: entry for task, entry in launched.items() if task.kind == "extract"}
    return {
        task: _reason(entry, fillers.get(task.store))
        for task, entry in launched.items()
        if task.kind == "run" and entry.job and not task.is_done()
    }


def _reason(entry: Launched, filler: Launched | None) -> str:
    said = _ended(entry)
    if said is not None:
        return f"{said or 'it left no record'} (see {entry.log})"
    if filler and (said := _ended(filler)):
        return f"no activations: {said} (see {filler.log})"
    return "it never began: cancelled, or its extraction was"


def _ended(entry: Launched) -> str | None:
    return ended(Path(entry.log), mark(entry)) if entry.log else None


def mark(entry: Launched) -> str:
    """What a task is known by in its log."""
    return entry.results[0] if entry.results else entry.store
