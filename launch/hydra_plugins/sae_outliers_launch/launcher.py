"""Hydra's launchers of this project: each is a scheduler, which conf/hydra/launcher/ names."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SchedulerLauncher(Launcher):
    """What Hydra knows a scheduler by; the sweeper reads which one from the config, and gives it the whole plan."""

    def __init__(self, scheduler: str, **options: object) -> None:
        self.scheduler = scheduler

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        pass

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise ValueError(f"the scheduler {self.scheduler} takes whole plans: leave hydra/sweeper=layers as it is")
