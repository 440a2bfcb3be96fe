"""What other sweeps below the same results_dir have in SLURM's queue, from their manifests."""

from dataclasses import dataclass, field
from pathlib import Path

from sae_outliers.sweeps.manifest import read_manifests
from sae_outliers.sweeps.slurm.queue import slurm_queue


@dataclass
class UnderWay:
    """`runs`: folders of runs that are queued or running. `extractions`: by store, the jobs that fill it."""

    runs: set[Path] = field(default_factory=set)
    extractions: dict[Path, list[str]] = field(default_factory=dict)


def under_way(results_dir: Path) -> UnderWay:
    """
    Raises:
        ValueError: SLURM has been given jobs, and does not say what has become of them; or a manifest cannot be read.
    """
    found = UnderWay()
    tasks = [task for manifest in read_manifests(results_dir) for task in manifest.tasks if task.job]
    queue = slurm_queue() if tasks else {}
    if queue is None:
        raise ValueError(
            f"{results_dir}/sweeps names jobs of SLURM's, and squeue does not answer: try again when it does, or "
            "remove that folder if they are gone"
        )
    for task in tasks:
        if task.job not in queue:
            continue
        if task.kind == "extract":
            found.extractions.setdefault(results_dir / task.store, []).append(str(task.job))
        found.runs.update(results_dir / folder for folder in task.results)
    return found
