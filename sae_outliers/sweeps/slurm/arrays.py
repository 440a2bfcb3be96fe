"""A plan cut into what SLURM is given: by store of activations one extraction, then arrays of packs of runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from sae_outliers.sweeps.cost import Cost
from sae_outliers.sweeps.plan import Plan, Task

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """One call of sbatch: an array whose tasks, the packs, each do some of the plan's tasks one after the other."""

    kind: str  # extract or run
    model: str
    store: Path
    packs: Sequence[Sequence[Task]]

    @property
    def tasks(self) -> list[Task]:
        return [task for pack in self.packs for task in pack]

    def total(self) -> Cost:
        return sum((task.cost for task in self.tasks), Cost())

    def largest(self) -> Cost:
        """What every task of the array is given: the most that one of them takes."""
        costs = [sum((task.cost for task in pack), Cost()) for pack in self.packs]
        memory = sum(costs, Cost())
        most = max(costs, key=lambda cost: cost.operations)
        return replace(most, gpu_gb=memory.gpu_gb, host_gb=memory.host_gb, read=max(cost.read for cost in costs))


def batches_of(planned: Plan, pack: int, array_size: int) -> Iterator[Batch]:
    """Store by store; an extraction comes before the runs that need it."""
    extractions = {task.store: task for task in planned.extractions}
    jobs: dict[Path, list[Task]] = {}
    for task in planned.jobs:
        jobs.setdefault(task.store, []).append(task)
    for store, tasks in jobs.items():
        if store in extractions:
            yield Batch("extract", tasks[0].model, store, [[extractions[store]]])
        for array in _chunks(_chunks(tasks, pack), array_size):
            yield Batch("run", tasks[0].model, store, array)


def _chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
