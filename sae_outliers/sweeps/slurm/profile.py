"""A site's profile, launch/slurm/<site>.yaml: what its cluster has and how it is asked for it."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_outliers.paths import SITES, user_conf
from sae_outliers.sweeps.slurm.queue import slurm_output
from sae_outliers.sweeps.task import Cost

MAX_ARRAY_SIZE = 1000  # whatever the cluster allows: an array's scripts and pickles are written before any of it starts
STARTUP_S = 60.0  # until a task computes: Python, CUDA, libraries
TFLOPS_PER_GPU = 12.0  # assumed: 60 % of what an A100 has in float32
TFLOPS_PER_CORE = 0.06  # results/benchmarks: the encoder's product on two cores
UNKNOWN_GPU_GB = 10**6  # stands for the memory of a GPU of which nothing is known
TIME_MARGIN = 3.0  # a time limit is so many times the estimate
MIN_MINUTES = 60  # Submitit takes every signal for a time-out where the limit is below 10


@dataclass
class Site:
    """The keys of a profile; launch/slurm/default.yaml says what they mean."""

    name: str = "default"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gpus: dict[int, str] | None = None
    cpus: int = 4
    mem_gb: int = 16
    max_minutes: int = 1440
    max_array_size: int | None = None
    array_parallelism: int = 64
    signal_delay_s: int = 120
    scratch: str | None = None
    setup: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    tflops: float | None = None
    read_gb_s: float = 1.0

    def gres(self, cost: Cost) -> str | None:
        """Return the smallest GPU that holds a task; None without GPUs. Raises ValueError where none holds it."""
        if not self.gpus:
            return None
        fitting = [memory for memory in self.gpus if memory >= cost.gpu_gb]
        if not fitting:
            raise ValueError(f"site={self.name} has no GPU of {cost.gpu_gb:.0f} GB: add one to gpus in its profile")
        return self.gpus[min(fitting)]

    def seconds(self, cost: Cost) -> float:
        """Return how long the work takes here, once a task computes."""
        return cost.operations / (1e12 * self.speed()) + cost.read / (1e9 * self.read_gb_s)

    def speed(self) -> float:
        """Return the sustained TFLOPS of a task."""
        return self.tflops or (TFLOPS_PER_GPU if self.gpus else TFLOPS_PER_CORE * self.cpus)

    def minutes(self, cost: Cost) -> int:
        """Return the time limit of a task."""
        estimate = TIME_MARGIN * (STARTUP_S + self.seconds(cost)) / 60
        return min(max(round(estimate + 0.5), MIN_MINUTES), self.max_minutes)

    def memory_gb(self, cost: Cost) -> int:
        return max(self.mem_gb, round(cost.host_gb + 0.5))

    def array_size(self) -> int:
        return min(self.max_array_size or MAX_ARRAY_SIZE, MAX_ARRAY_SIZE)


def load_site(name: str | None) -> Site:
    """Return the profile of that name; by default the one named like the cluster, or default.yaml.

    The user's own, in conf/slurm/, come before those of the project. What a profile leaves open, the cluster is asked.

    Raises:
        ValueError: there is no such profile, or it has a key or value that no profile has.
    """
    cluster = cluster_config()
    own = cluster.get("ClusterName", "")
    profiles = site_profiles()
    name = name or (own if own in profiles else "default")
    if name not in profiles:
        raise ValueError(
            f"site={name} names no profile in launch/slurm or conf/slurm: there are {', '.join(sorted(profiles))}"
        )
    path = profiles[name]
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Site), OmegaConf.load(path), {"name": name})
        site: Site = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
    if site.gpus is None:
        listed = slurm_output("sinfo", "--noheader", "--format=%G")  # nothing where a plan is made without a cluster
        site.gpus = {UNKNOWN_GPU_GB: "gpu:1"} if not listed or "gpu" in listed else {}
    site.max_array_size = site.max_array_size or int(cluster.get("MaxArraySize", MAX_ARRAY_SIZE))
    return site


def site_profiles() -> dict[str, Path]:
    """Return the profiles by name."""
    conf = user_conf()
    folders = [SITES, conf / "slurm"] if conf else [SITES]
    return {path.stem: path for folder in folders for path in folder.glob("*.yaml")}


def cluster_config() -> dict[str, str]:
    """Return what `scontrol show config` says; nothing where there is no SLURM."""
    shown = slurm_output("scontrol", "show", "config") or ""
    return dict(re.findall(r"^(\w+)\s*= (\S+)$", shown, re.MULTILINE))
