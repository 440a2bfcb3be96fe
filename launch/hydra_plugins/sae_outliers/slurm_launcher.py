"""`hydra/launcher=slurm`: a plan goes to SLURM in two phases, store by store, tied by dependencies.

Nothing on this side has to run while the jobs do: SLURM starts the runs of a model when its extraction is done.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from sae_outliers.config import RunConfig
    from sae_outliers.sweeps.ledger import Ledger
    from sae_outliers.sweeps.plan import Plan, Task
    from sae_outliers.sweeps.slurm.in_flight import UnderWay

SECONDS_UNWRITTEN = 5.0  # jobs of so long a time would be unknown after a kill; their runs' locks still keep others off


@dataclass
class SlurmLauncherConfig:
    _target_: str = "hydra_plugins.sae_outliers.slurm_launcher.SlurmLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="slurm", node=SlurmLauncherConfig, provider="sae_outliers")


class SlurmLauncher(Launcher):
    takes_plans = True  # which the sweeper asks for: Hydra makes a second class of each that it finds

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.folder = Path(config.hydra.sweep.dir).absolute()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise ValueError("hydra/launcher=slurm submits whole plans, which hydra/sweeper=layers makes")

    def submit(self, planned: "Plan", ledger: "Ledger", cfg: "RunConfig", others: "UnderWay") -> "dict[Task, str]":
        """Give the plan to sbatch; the ledger gets each task's job and log, now and then and at the end.

        Returns the tasks that SLURM did not take, and why. The others stand.

        Raises:
            ValueError: there is no sbatch, or the site's profile cannot be used.
        """
        from sae_outliers.sweeps.slurm.arrays import batches_of
        from sae_outliers.sweeps.slurm.profile import load_site
        from sae_outliers.sweeps.slurm.submit import Submission, keep_activations_in
        from sae_outliers.sweeps.snapshot import take_snapshot

        if shutil.which("sbatch") is None:
            raise ValueError("hydra/launcher=slurm: there is no sbatch on the path; dry_run=true needs none")
        if not planned.jobs:
            return {}
        site, results_dir = load_site(cfg.site), Path(cfg.results_dir)
        if site.scratch:
            keep_activations_in(site.scratch, results_dir)
        code = take_snapshot(self.folder / "code", results_dir)
        submission = Submission(self.folder / "slurm", site, code, ledger.launched, others)
        print(f"site={site.name}; what is submitted runs the code as it is now, in {code}", flush=True)
        written = time.monotonic()
        try:
            for batch in batches_of(planned, cfg.pack, site.array_size()):
                submission.submit(batch)
                if time.monotonic() - written > SECONDS_UNWRITTEN:
                    ledger.write()
                    written = time.monotonic()
        finally:
            ledger.write()
        return submission.refused
