"""`hydra/launcher=auto`, the default: SLURM where there is one, local processes elsewhere; it says which."""

import shutil
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher


@dataclass
class AutoLauncherConfig:
    _target_: str = "hydra_plugins.sae_outliers.auto_launcher.AutoLauncher"
    n_workers: int | None = None  # of local processes


ConfigStore.instance().store(group="hydra/launcher", name="auto", node=AutoLauncherConfig, provider="sae_outliers")


class AutoLauncher(Launcher):
    """Hydra asks for an object of this class, and gets one of the launcher that fits."""

    def __new__(cls, n_workers: int | None = None) -> Any:
        # imported here because Hydra executes every plugin again when it looks for them
        from hydra_plugins.sae_outliers.local_launcher import LocalLauncher
        from hydra_plugins.sae_outliers.slurm_launcher import SlurmLauncher

        from sae_outliers.sweeps.slurm.profile import said

        if shutil.which("sbatch") is None:
            print("local processes: there is no sbatch on the path", flush=True)
            return LocalLauncher(n_workers)
        if not said("sinfo", "--noheader"):
            print("local processes: sbatch is there, but sinfo does not answer", flush=True)
            return LocalLauncher(n_workers)
        print("SLURM: sinfo answers (hydra/launcher=local_processes would stay on this machine)", flush=True)
        return SlurmLauncher()

    def setup(self, **_: Any) -> None:
        raise NotImplementedError

    def launch(self, job_overrides: Any, initial_job_idx: int) -> list[JobReturn]:
        raise NotImplementedError
