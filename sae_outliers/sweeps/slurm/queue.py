"""The user's jobs in SLURM's queue."""

import os
import shutil
import subprocess
from collections.abc import Mapping

WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")  # SLURM's words
ANSWERS_WITHIN = 60  # seconds
Queue = Mapping[str, str]  # SLURM's job -> its state


def slurm_queue() -> Queue | None:
    """The user's jobs in SLURM's queue, array tasks one by one; None where there is no SLURM, or it does not answer."""
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", f"--user={os.getuid()}", "--array", "--noheader", "--format=%i %T"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ANSWERS_WITHIN)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return dict(line.split(maxsplit=1) for line in asked.stdout.splitlines())
