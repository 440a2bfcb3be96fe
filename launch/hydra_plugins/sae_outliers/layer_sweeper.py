"""Hydra's `-m` for this project: plans one job per model, layer and condition, launches in two phases, sums up."""

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from hydra_plugins.sae_outliers.combinations import Combinations

    from sae_outliers.config import RunConfig
    from sae_outliers.sweeps.ledger import Ledger
    from sae_outliers.sweeps.plan import Plan, Task
    from sae_outliers.sweeps.slurm.in_flight import UnderWay


@dataclass
class LayerSweeperConfig:
    _target_: str = "hydra_plugins.sae_outliers.layer_sweeper.LayerSweeper"
    params: dict[str, Any] | None = None  # sweeps that an experiment brings along; the command line comes first


ConfigStore.instance().store(group="hydra/sweeper", name="layers", node=LayerSweeperConfig, provider="sae_outliers")


class LayerSweeper(Sweeper):
    """One job per model, layer and condition; activations are extracted first, once per model.

    Imports of the project stand in the methods, for Hydra imports every plugin before it knows whether one is used.
    """

    def __init__(self, params: dict[str, Any] | None) -> None:
        self.params = dict(params or {})  # Hydra hands over its own kind of mapping

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config: DictConfig = config
        self.config_loader = hydra_context.config_loader
        self.folder = Path(config.hydra.sweep.dir)  # read here once, so that all jobs see the same ${now:...}
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.on_slurm = getattr(self.launcher, "takes_plans", False)

    def sweep(self, arguments: list[str]) -> None:
        """Run what is left of the sweep. Exits with status 1 if a job failed, after all others have run."""
        from hydra_plugins.sae_outliers.combinations import Combinations

        defaults = {"group": self.folder.name} | self.params
        combinations = Combinations(self.config_loader, self.config, arguments, defaults)
        cfg = combinations.compose(combinations.all[0])  # what it says of the sweep stands in all
        try:
            with self._alone(cfg):
                others = self._others(cfg)
                planned = self._planned(combinations, others)
                if cfg.dry_run:
                    return self._describe(planned, cfg)
                ledger = self._recorded(planned, cfg, arguments)
                failures = self.launcher.submit(planned, ledger, cfg, others) if self.on_slurm else {}
        except ValueError as error:
            sys.exit(str(error))
        self._see_to_the_end(planned, cfg, ledger, failures)

    def _see_to_the_end(self, planned: "Plan", cfg: "RunConfig", ledger: "Ledger", failures: "dict[Task, str]") -> None:
        from hydra_plugins.sae_outliers.phases import launch_in_phases

        from sae_outliers.sweeps.plan import summarise
        from sae_outliers.sweeps.slurm.wait import outcome

        if self.on_slurm and not cfg.wait:
            print(f"python -m sae_outliers.status results_dir={cfg.results_dir} shows how the jobs do", flush=True)
        try:
            if not self.on_slurm:
                failures |= launch_in_phases(self.launcher, planned)
            elif cfg.wait:
                failures |= outcome(ledger.launched)
        except KeyboardInterrupt:
            done = sum(task.is_done() for task in planned.jobs)
            then = "SLURM goes on with the others" if self.on_slurm else "the same command goes on from there"
            print(f"interrupted with {done} of {len(planned.jobs)} job(s) done: {then}")
            sys.exit(130)
        if cfg.wait or not self.on_slurm:
            print(summarise(planned, failures), flush=True)
        if failures:
            sys.exit(1)

    def _alone(self, cfg: "RunConfig") -> AbstractContextManager[Any]:
        """Two sweeps do not plan and submit at once, or each would submit what the other is about to."""
        from filelock import FileLock

        if cfg.dry_run or not self.on_slurm:
            return nullcontext()
        folder = Path(cfg.results_dir) / "sweeps"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock")

    def _others(self, cfg: "RunConfig") -> "UnderWay":
        from sae_outliers.sweeps.slurm.in_flight import UnderWay, under_way

        try:
            return under_way(Path(cfg.results_dir))
        except ValueError:
            if self.on_slurm:
                raise
            return UnderWay()  # runs' locks keep local processes off those of SLURM's

    def _planned(self, combinations: "Combinations", others: "UnderWay") -> "Plan":
        from sae_outliers.sweeps.plan import plan

        planned = plan(combinations.composed(), others.runs)
        elsewhere = f", {planned.elsewhere} under way in other sweeps" if planned.elsewhere else ""
        print(f"{len(planned.jobs)} job(s) to run, {planned.finished} finished before{elsewhere}", flush=True)
        return planned

    def _describe(self, planned: "Plan", cfg: "RunConfig") -> None:
        from sae_outliers.sweeps.slurm.dry_run import describe

        print(describe(planned, cfg, self.folder.absolute(), self.on_slurm), flush=True)

    def _recorded(self, planned: "Plan", cfg: "RunConfig", arguments: list[str]) -> "Ledger":
        from sae_outliers.sweeps.ledger import Ledger
        from sae_outliers.sweeps.manifest import Manifest
        from sae_outliers.utils.provenance import git_commit

        hydra = [o for o in self.config.hydra.overrides.hydra if not o.startswith("hydra.mode=")]
        manifest = Manifest(
            self.folder.name, [*hydra, *arguments], "slurm" if self.on_slurm else "local", git_commit(), []
        )
        ledger = Ledger(Path(cfg.results_dir), manifest, planned)
        if manifest.launcher == "local":
            ledger.log_to(self.folder.absolute())
        if planned.jobs:
            ledger.write()
        return ledger
