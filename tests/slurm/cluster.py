"""What the tests ask of SLURM and do to it, through its own commands and kill."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT


def slurm(*command: str) -> str:
    """The output of one of SLURM's commands, or of a script of launch/cluster/."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def wait_for(condition: Callable[[], object], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.2)


def field_of(job: str, name: str) -> str:
    """A field of `scontrol show job`, of the job's current or last run; '' for one that SLURM does not know."""
    shown = subprocess.run(["scontrol", "show", "job", job, "--oneliner"], capture_output=True, text=True).stdout
    found = re.search(rf"\b{name}=(\S*)", shown)
    return found[1] if found else ""


def is_running(job: str) -> bool:
    return field_of(job, "JobState") == "RUNNING"


def has_left(job: str) -> bool:
    """Whether the job's first run is over and its node free of it; another may have begun."""
    state = field_of(job, "JobState")
    return state != "COMPLETING" and (state != "RUNNING" or field_of(job, "Restarts") != "0")


def queued() -> list[str]:
    """All jobs that are not over."""
    return slurm("squeue", "--noheader", "--array", "--format=%i %T").splitlines()


def states_of(job: str) -> list[str]:
    """The states of all runs of a job, of the first and of those after each requeue."""
    return slurm("sacct", "-X", "-n", "-P", "-D", "-j", job, "--format=State").splitlines()


def lose_node(node: str) -> None:
    """As when a machine loses its power: its slurmd, the keepers of its jobs' steps and the jobs, killed at once."""
    jobs = slurm("squeue", "--noheader", f"--nodelist={node}", "--format=%A").split()
    steps = re.compile(rf"slurmstepd: \[({'|'.join(jobs)})\.")
    for is_its in (
        lambda process: re.search(rf"slurmd\0-N\0{node}\0", _read(process / "cmdline")),
        lambda process: steps.match(_read(process / "cmdline")),
        lambda process: f"\0SLURMD_NODENAME={node}\0" in _read(process / "environ"),
    ):
        for process in [process for process in Path("/proc").glob("[0-9]*") if is_its(process)]:
            _kill(int(process.name))


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
