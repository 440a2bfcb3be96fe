"""What a sweep plans: extractions first, then the jobs of each model and layer; finished ones are skipped."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_outliers.config import RunConfig, roles
from sae_outliers.results.layout import is_finished
from sae_outliers.runs.activations import is_stored, wanted
from sae_outliers.runs.identity import run_directories, store_directory
from sae_outliers.runs.layer_spec import layers_of
from sae_outliers.runs.validation import validate
from sae_outliers.sweeps.cost import extraction_cost, joint_cost, streamed_cost
from sae_outliers.sweeps.sharing import Job, joined, product_of
from sae_outliers.sweeps.task import Task


@dataclass(frozen=True)
class Plan:
    extractions: list[Task]
    jobs: list[Task]
    finished: int  # jobs that have a record already
    elsewhere: int = 0  # jobs that other sweeps have queued or running

    @property
    def tasks(self) -> list[Task]:
        return [*self.extractions, *self.jobs]


def plan(
    composed: Iterable[tuple[Sequence[str], RunConfig, Sequence[RunConfig]]], elsewhere: Collection[Path] = ()
) -> Plan:
    """Return the work that is left of these combinations of overrides, each with its config and its variants'.

    Two combinations that come to the same run give one job, and so do those that share a product with the encoder. A
    job of which each unfinished run is in a folder of `elsewhere` is left to others. Each store of activations is
    filled by one extraction, with the layers and the tokens that the jobs on it need; none where they are there.

    Raises:
        ValueError: a config names a layer that its model does not have, or a number that no run can use.
    """
    jobs: dict[tuple[Path, ...], Job] = {}
    for combination, cfg, variants in composed:
        validate(cfg, variants)
        for job in _jobs(combination, cfg, variants):
            jobs.setdefault(job.task.results, job)
    theirs = {key for key, job in jobs.items() if not job.task.is_done() and _is_in_flight(job.task, elsewhere)}
    mine = list(joined(job for key, job in jobs.items() if key not in theirs))
    left = [job for job in mine if not job.task.is_done()]
    return Plan(_extractions(left), [job.task for job in left], len(mine) - len(left), len(theirs))


def _jobs(combination: Sequence[str], cfg: RunConfig, variants: Sequence[RunConfig]) -> Iterator[Job]:
    """Yield the jobs of one combination: one for each layer, or one for all where they share the network's passes."""
    overrides = tuple(override for override in combination if not _is_sweep_only(override))
    product = product_of(cfg)
    layers, store = layers_of(cfg.model, cfg.layer), store_directory(cfg)
    folders = [dict(zip(layers, run_directories(variant, layers), strict=True)) for variant in variants]
    cost = joint_cost(variants) if cfg.store else streamed_cost(cfg, len(layers), variants)
    for together in [[layer] for layer in layers] if cfg.store else [layers]:
        results = tuple(of_variant[layer] for layer in together for of_variant in folders)
        told = (*overrides, _layer_override(together))
        yield Job(Task(_name(cfg, together), "run", told, results, store, cost=cost), together, cfg, overrides, product)


def _is_sweep_only(override: str) -> bool:
    role = roles().get(override.partition("=")[0])
    return role is not None and role.sweep_only


def _layer_override(layers: Sequence[int]) -> str:
    return f"layer={layers[0]}" if len(layers) == 1 else f"layer=[{','.join(map(str, layers))}]"


def _name(cfg: RunConfig, layers: Sequence[int]) -> str:
    where = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"
    variants = f"{len(cfg.variants)} variants" if cfg.variants else f"centering={cfg.centering.name}"
    seed = f" seed={cfg.seed}" if cfg.seed else ""
    return f"{cfg.model.name} {where} {cfg.sae.name} {variants}{seed}"


def _is_in_flight(task: Task, elsewhere: Collection[Path]) -> bool:
    return bool(elsewhere) and all(folder in elsewhere or is_finished(folder) for folder in task.results)


def _extractions(jobs: Iterable[Job]) -> list[Task]:
    by_store: dict[Path, list[Job]] = {}
    for job in jobs:
        if job.cfg.store:  # without a store each job runs the network itself
            by_store.setdefault(job.task.store, []).append(job)
    found = [task for of_store in by_store.values() for task in _extraction(of_store)]
    # the longest first: no other process helps with it, and one that begins last leaves the others idle
    return sorted(found, key=lambda task: -task.cost.operations)


def _extraction(jobs: Sequence[Job]) -> Iterator[Task]:
    """Yield what fills the store of these jobs, unless it holds all that they need."""
    largest = max(jobs, key=lambda job: wanted(job.cfg).total)
    layers = sorted({layer for job in jobs for layer in job.layers})
    if is_stored(largest.cfg, layers):
        return
    overrides = (*largest.task.overrides[:-1], _layer_override(layers), "task=extract")
    cost = extraction_cost(largest.cfg, len(layers))
    yield Task(f"{largest.cfg.model.name} activations", "extract", overrides, (), largest.task.store, cost=cost)
