"""Cut a plan into arrays for sbatch: store by store one extraction, then packs of runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from sae_outliers.sweeps.plan import Plan
from sae_outliers.sweeps.task import Cost, Task

T = TypeVar("T")


@dataclass(frozen=True)
class Array:
    """One call of sbatch: an array whose tasks, the packs, each do some of the plan's tasks one after the other.

    All of its tasks are on the same store of activations, and of the same kind.
    """

    packs: Sequence[Sequence[Task]]

    @property
    def tasks(self) -> list[Task]:
        return [task for pack in self.packs for task in pack]

    @property
    def kind(self) -> str:
        return self.packs[0][0].kind

    @property
    def model(self) -> str:
        return self.packs[0][0].model

    @property
    def store(self) -> Path:
        return self.packs[0][0].store

    def total(self) -> Cost:
        return sum((task.cost for task in self.tasks), Cost())

    def largest(self) -> Cost:
        """Return what every task of the array is given: the most that one of them takes."""
        costs = [sum((task.cost for task in pack), Cost()) for pack in self.packs]
        memory = sum(costs, Cost())
        most = max(costs, key=lambda cost: cost.operations)
        return replace(most, gpu_gb=memory.gpu_gb, host_gb=memory.host_gb, read=max(cost.read for cost in costs))


def arrays_of(planned: Plan, pack: int, array_size: int) -> Iterator[Array]:
    """Yield the arrays store by store; an extraction comes before the runs that need it."""
    extractions = {task.store: task for task in planned.extractions}
    jobs: dict[Path, list[Task]] = {}
    for task in planned.jobs:
        jobs.setdefault(task.store, []).append(task)
    for store, tasks in jobs.items():
        if store in extractions:
            yield Array([[extractions[store]]])
        for packs in _chunks(_chunks(tasks, pack), array_size):
            yield Array(packs)


def _chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
