"""What a sweep needs of a scheduler, which ones there are, and what they have queued.

To add one, write a class in sweeps/schedulers/ that registers itself, and a yaml in conf/hydra/launcher/ that names it.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from sae_outliers.sweeps.manifest import Manifest, read_manifests
from sae_outliers.sweeps.task import Task
from sae_outliers.utils.registry import Registry

if TYPE_CHECKING:
    from sae_outliers.config import RunConfig
    from sae_outliers.sweeps.plan import Plan

Queue = Mapping[str, Literal["queued", "running"]]  # by job; one that has ended is not in it


class NoAnswer(ValueError):
    """A scheduler does not say which jobs it has: the message names the program that was asked."""


@dataclass
class HydraSweep:
    """What Hydra gives a sweeper. `folder` is the sweep's own, for logs and scripts; its name is the sweep's."""

    hydra_context: HydraContext
    task_function: TaskFunction
    config: DictConfig

    def __post_init__(self) -> None:
        self.folder = Path(self.config.hydra.sweep.dir)  # read here once, so that all tasks see the same ${now:...}


@dataclass
class InFlight:
    """`runs`: folders of runs that are queued or running. `extractions`: by store, the jobs that fill it."""

    runs: set[Path] = field(default_factory=set)
    extractions: dict[Path, list[str]] = field(default_factory=dict)


class Scheduler(Protocol):
    """Takes the tasks of one plan, and knows when they have ended.

    Attributes:
        detached: its tasks go on without the command that submitted them, which need not wait for them.
        after_interrupt: what becomes of the tasks when that command is interrupted, as the end of a sentence.
    """

    detached: bool
    after_interrupt: str

    def __init__(self, sweep: HydraSweep) -> None: ...

    @staticmethod
    def queue() -> Queue:
        """Return the user's jobs. Raises NoAnswer where they cannot be told."""
        ...

    def preview(self, planned: "Plan", cfg: "RunConfig") -> list[str]:
        """Return what a dry run prints below the table of the plan."""
        ...

    def submit(self, planned: "Plan", cfg: "RunConfig", others: InFlight, save: Callable[[], None]) -> dict[Task, str]:
        """Accept the plan's tasks and fill in their jobs and logs; `save` writes these to the manifest.

        Returns the tasks that were refused, and why.

        Raises:
            ValueError: nothing can be submitted.
        """
        ...

    def wait(self, planned: "Plan") -> dict[Task, str]:
        """Return, when all tasks have ended, the jobs that failed, and why."""
        ...


SCHEDULERS: Registry[type[Scheduler]] = Registry("hydra.launcher.scheduler", "sae_outliers.sweeps.schedulers")


def automatic() -> str:
    """Return the name of the scheduler that `hydra/launcher=auto` stands for on this machine, and print why."""
    from sae_outliers.sweeps.slurm.queue import slurm_output

    if shutil.which("sbatch") is None:
        print("local processes: there is no sbatch on the path", flush=True)
        return "local"
    if not slurm_output("sinfo", "--noheader"):
        print("local processes: sbatch is there, but sinfo does not answer", flush=True)
        return "local"
    print("SLURM: sinfo answers (hydra/launcher=local_processes would stay on this machine)", flush=True)
    return "slurm"


def in_flight(results_dir: Path, launcher: str) -> InFlight:
    """Return what the sweeps below results_dir have queued or running, for a plan that goes to `launcher`.

    Another scheduler that does not answer is left out: runs' locks still keep two processes off the same run.

    Raises:
        ValueError: `launcher` has been given jobs, and does not say what has become of them; or a manifest cannot be
            read.
    """
    found = InFlight()
    for name, tasks in _by_launcher(read_manifests(results_dir)).items():
        try:
            queue = SCHEDULERS[name].queue()
        except NoAnswer as error:
            if name != launcher:
                continue
            raise ValueError(
                f"{results_dir}/sweeps names jobs of {name}, and {error}: try again when it does, or remove that "
                "folder if they are gone"
            ) from error
        for task in tasks:
            if task.job not in queue:
                continue
            if task.kind == "extract" and name == launcher:  # only its own jobs can be waited for
                found.extractions.setdefault(task.store, []).append(str(task.job))
            found.runs.update(task.results)
    return found


def _by_launcher(manifests: Sequence[Manifest]) -> dict[str, list[Task]]:
    """Return the tasks that have been given to each scheduler as jobs."""
    found: dict[str, list[Task]] = {}
    for manifest in manifests:
        if submitted := [task for task in manifest.tasks if task.job]:
            found.setdefault(manifest.launcher, []).extend(submitted)
    return found
