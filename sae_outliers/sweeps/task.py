"""A task of a sweep, the same object from the plan to the manifest, and what it takes."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from sae_outliers.results.record import is_finished


@dataclass(frozen=True)
class Cost:
    """What a task takes on any machine.

    Attributes:
        operations: in float32.
        read, disk: bytes read, and bytes left behind.
        gpu_gb, host_gb: memory of the GPU and of the machine.
    """

    operations: float = 0.0
    read: float = 0.0
    disk: float = 0.0
    gpu_gb: float = 0.0
    host_gb: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """Return the cost of running both in sequence."""
        together = {"gpu_gb": max, "host_gb": max}  # memory is free again when the first has ended
        values = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return Cost(**{name: together.get(name, lambda a, b: a + b)(*pair) for name, pair in values.items()})


@dataclass(unsafe_hash=True)  # what a task is never changes: only its job and log are filled in, which are not hashed
class Task:
    """One extraction or one job of runs; it is planned, submitted, and written to the manifest.

    Attributes:
        overrides: what Hydra is given.
        results: folders of its runs; none for an extraction.
        store: the folder of the activations that it reads or fills.
        job: the scheduler's id; `123_4` in a SLURM array, shared by the tasks of a pack. None before the scheduler has
            accepted it, and in local processes.
        log: the file that it writes stderr to; None where that is not known yet.
        cost: an estimate, which is not written to the manifest.
    """

    name: str
    kind: Literal["extract", "run"]
    overrides: tuple[str, ...]
    results: tuple[Path, ...]
    store: Path
    job: str | None = field(default=None, hash=False)
    log: str | None = field(default=None, hash=False)
    cost: Cost = field(default=Cost(), compare=False, repr=False)

    @property
    def model(self) -> str:
        return self.results[0].parents[1].name if self.results else self.store.name.rpartition("-")[0]

    def is_done(self) -> bool:
        """Return whether each of its runs has a record. Only an extraction's own process knows whether it is done."""
        return all(is_finished(directory) for directory in self.results)
