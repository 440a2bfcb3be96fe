"""Hydra's `-m` for this project: expands `layer=all` and `glob(folder/*)`, launches in two phases, sums up."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.sae_outliers.own_models import CONF_OWN
from omegaconf import DictConfig, open_dict

if TYPE_CHECKING:
    from sae_outliers.sweep import Plan, Task


@dataclass
class LayerSweeperConfig:
    _target_: str = "hydra_plugins.sae_outliers.layer_sweeper.LayerSweeper"
    params: dict[str, Any] | None = None  # sweeps that an experiment brings along; the command line comes first


ConfigStore.instance().store(group="hydra/sweeper", name="layers", node=LayerSweeperConfig, provider="sae_outliers")


class LayerSweeper(Sweeper):
    """One job per model, layer and condition; activations are extracted first, once per model."""

    def __init__(self, params: dict[str, Any] | None) -> None:
        self.params = dict(params or {})  # Hydra hands over its own kind of mapping

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config: DictConfig = config
        self.config_loader = hydra_context.config_loader
        self.name = Path(config.hydra.sweep.dir).name  # read here once, so that all jobs see the same ${now:...}
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run what is left of the sweep. Exits with status 1 if a job failed, after all others have run."""
        # imported here because Hydra imports every plugin before it knows whether one is used
        from sae_outliers.sweep import plan, summarise

        try:
            planned = plan(self._composed(overrides) for overrides in self._combinations(arguments))
        except ValueError as error:
            sys.exit(str(error))
        print(f"{len(planned.jobs)} job(s) to run, {planned.finished} finished before", flush=True)
        try:
            failures = self._launch_in_phases(planned)
        except KeyboardInterrupt:
            done = sum(task.is_done() for task in planned.jobs)
            print(f"interrupted with {done} of {len(planned.jobs)} job(s) done: the same command goes on from there")
            sys.exit(130)
        print(summarise(planned, failures), flush=True)
        if failures:
            sys.exit(1)

    def _launch_in_phases(self, planned: "Plan") -> "dict[Task, str]":
        """Extractions, then the jobs whose activations are there; the jobs that failed, and why."""
        lacking = {task.store: reason for task, reason in self._launch(planned.extractions, 0).items()}
        failures = {task: f"no activations: {lacking[task.store]}" for task in planned.jobs if task.store in lacking}
        ready = [task for task in planned.jobs if task.store not in lacking]
        return failures | self._launch(ready, len(planned.extractions))

    def _launch(self, tasks: "Sequence[Task]", first: int) -> "dict[Task, str]":
        """Launch tasks, numbered from `first` on; the ones that failed, and why."""
        try:
            returns = self.launcher.launch([list(task.overrides) for task in tasks], first) if tasks else []
            reasons = {task: _reason(returned) for task, returned in zip(tasks, returns, strict=True)}
        except Exception as error:  # Submitit's launcher gives up at the first job that was killed
            reasons = {task: "" if task.is_done() else f"the launcher gave up: {_line(error)}" for task in tasks}
        # a launcher's word is not enough: SLURM calls a job completed whose Python raised
        return {t: r or "it left no record" for t, r in reasons.items() if r or not t.is_done()}

    def _composed(self, overrides: tuple[str, ...]) -> tuple[tuple[str, ...], Any, list[Any]]:
        """A combination of overrides, its config, and the configs of its variants."""
        from sae_outliers.config import expand

        config = self._compose(overrides)
        return overrides, config, expand(config, lambda variant: self._compose([*overrides, *variant]))

    def _compose(self, overrides: Sequence[str]) -> Any:
        config = self.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            del config["hydra"]
        return config

    def _combinations(self, arguments: list[str]) -> list[tuple[str, ...]]:
        """The product of all swept values, those of the command line and then those of `params`."""
        parser = OverridesParser.create(config_loader=self.config_loader)
        parsed = parser.parse_overrides(arguments)
        named = {override.key_or_group for override in parsed}
        defaults = {"group": self.name} | self.params
        parsed += parser.parse_overrides([f"{k}={v}" for k, v in defaults.items() if k not in named])
        return list(itertools.product(*(list(self._values(override)) for override in parsed)))

    def _values(self, override: Override) -> Iterator[str]:
        key = override.get_key_element()
        value = override.value()
        if isinstance(value, Glob):
            yield from (f"{key}={option}" for option in self._globbed(override.key_or_group, value))
        elif override.is_sweep_override():
            yield from (f"{key}={choice}" for choice in override.sweep_string_iterator())
        else:
            yield f"{key}={override.get_value_element_as_str()}"

    def _globbed(self, group: str, glob: Glob) -> list[str]:
        """Options of a config group that a glob names. `folder/*` looks into that folder, `*` only at the top."""
        found: list[str] = []
        for pattern in glob.include:
            folder, _, name = pattern.rpartition("/")
            inside = f"{group}/{folder}" if folder else group
            excluded = [e.rpartition("/")[2] for e in glob.exclude if e.rpartition("/")[0] == folder]
            options = Glob(include=[name], exclude=excluded).filter(self._options(inside))
            found += [f"{folder}/{option}" if folder else option for option in options]
        if not found:
            sys.exit(f"{group}=glob({','.join(glob.include)}) names nothing in conf/{group}/: check the folder's name")
        return found

    def _options(self, group: str) -> list[str]:
        """Options of a group in conf/ itself: those in conf/own/ say nothing until they are given a name or a path."""
        own = {path.stem for path in (CONF_OWN / group).glob("*.yaml")}
        return [option for option in self.config_loader.get_group_options(group) if option not in own]


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
