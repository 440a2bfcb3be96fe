"""What a sweep plans: extractions first, then one job per model, layer and condition; finished ones are skipped."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import relpath
from pathlib import Path

from sae_outliers.config import RunConfig
from sae_outliers.models.layer_spec import layers_of
from sae_outliers.results.layout import is_finished
from sae_outliers.runs.activations import is_stored, tokens_wanted
from sae_outliers.runs.identity import run_directories, store_directory
from sae_outliers.runs.validation import validate
from sae_outliers.sweeps.cost import Cost, extraction_cost, run_cost, streamed_cost
from sae_outliers.sweeps.manifest import Launched

OF_THE_SWEEP = ("layer", "dry_run", "wait", "pack", "site")  # overrides that its tasks do not get


@dataclass(frozen=True)
class Task:
    """Something to launch: overrides for Hydra, what it is called, and the store of activations that it is about."""

    overrides: tuple[str, ...]
    name: str
    store: Path
    results: tuple[Path, ...] = ()  # the folders of its runs; none for an extraction
    model: str = ""
    cost: Cost = field(default=Cost(), compare=False, repr=False)

    @property
    def kind(self) -> str:
        return "run" if self.results else "extract"

    def is_done(self) -> bool:
        """Whether a job's records are there. An extraction is done as far as anyone but its jobs can tell."""
        return all(is_finished(directory) for directory in self.results)


@dataclass(frozen=True)
class Plan:
    extractions: list[Task]
    jobs: list[Task]
    finished: int  # jobs that have a record already
    elsewhere: int = 0  # jobs that other sweeps have queued or running


@dataclass(frozen=True)
class Entry:
    """A job with what its store's extraction has to know of it. Its config is shared by all its layers."""

    task: Task
    layers: list[int]
    cfg: RunConfig


def plan(
    composed: Iterable[tuple[Sequence[str], RunConfig, Sequence[RunConfig]]], elsewhere: Collection[Path] = ()
) -> Plan:
    """From each combination of overrides, its config and its variants', to the work that is left.

    Two combinations that come to the same run give one job. A job of which each unfinished run is in a folder of
    `elsewhere` is left to others. Each store of activations is filled by one extraction, with the layers and the
    tokens that the jobs on it need; none where they are there.

    Raises:
        ValueError: a config names a layer that its model does not have, or a number that no run can use.
    """
    jobs: dict[tuple[Path, ...], Entry] = {}
    for combination, cfg, variants in composed:
        validate(cfg, variants)
        for entry in _entries(combination, cfg, variants):
            jobs.setdefault(entry.task.results, entry)
    left = [entry for entry in jobs.values() if not entry.task.is_done()]
    ours = [entry for entry in left if not _is_under_way(entry.task, elsewhere)]
    return Plan(_extractions(ours), [entry.task for entry in ours], len(jobs) - len(left), len(left) - len(ours))


def _entries(combination: Sequence[str], cfg: RunConfig, variants: Sequence[RunConfig]) -> Iterable[Entry]:
    """The jobs of one combination: one for each layer, or one for all where they share the network's passes."""
    overrides = [override for override in combination if override.partition("=")[0] not in OF_THE_SWEEP]
    layers, store = layers_of(cfg.model, cfg.layer), store_directory(cfg)
    folders = [dict(zip(layers, run_directories(variant, layers), strict=True)) for variant in variants]
    cost = sum(map(run_cost, variants), Cost()) if cfg.store else streamed_cost(cfg, len(layers), len(variants))
    for together in [[layer] for layer in layers] if cfg.store else [layers]:
        results = tuple(of_variant[layer] for layer in together for of_variant in folders)
        task = Task((*overrides, _layer_override(together)), _name(cfg, together), store, results, cfg.model.name, cost)
        yield Entry(task, together, cfg)


def _layer_override(layers: Sequence[int]) -> str:
    return f"layer={layers[0]}" if len(layers) == 1 else f"layer=[{','.join(map(str, layers))}]"


def _name(cfg: RunConfig, layers: Sequence[int]) -> str:
    where = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"
    side_by_side = f"{len(cfg.variants)} variants" if cfg.variants else f"centering={cfg.centering.name}"
    seed = f" seed={cfg.seed}" if cfg.seed else ""
    return f"{cfg.model.name} {where} {cfg.sae.name} {side_by_side}{seed}"


def _is_under_way(task: Task, elsewhere: Collection[Path]) -> bool:
    return bool(elsewhere) and all(folder in elsewhere or is_finished(folder) for folder in task.results)


def _extractions(jobs: Iterable[Entry]) -> list[Task]:
    by_store: dict[Path, list[Entry]] = {}
    for entry in jobs:
        if entry.cfg.store:  # without a store each job runs the network itself
            by_store.setdefault(entry.task.store, []).append(entry)
    return [task for entries in by_store.values() for task in _extraction(entries)]


def _extraction(jobs: Sequence[Entry]) -> Iterable[Task]:
    """What fills the store of these jobs, unless it holds all that they need."""
    largest = max(jobs, key=lambda entry: tokens_wanted(entry.cfg))
    layers = sorted({layer for entry in jobs for layer in entry.layers})
    if is_stored(largest.cfg, layers):
        return
    overrides = (*largest.task.overrides[:-1], _layer_override(layers), "task=extract")
    model, cost = largest.cfg.model.name, extraction_cost(largest.cfg, len(layers))
    yield Task(overrides, f"{model} activations", largest.task.store, model=model, cost=cost)


def launched(task: Task, results_dir: Path) -> Launched:
    """The task as the manifest has it."""
    results = [relpath(folder, results_dir) for folder in task.results]
    return Launched(task.name, task.kind, list(task.overrides), results, relpath(task.store, results_dir))


def summarise(planned: Plan, failures: Mapping[Task, str]) -> str:
    """The last words of a sweep: what was done, and for each failed task why."""
    done = len(planned.jobs) - len(failures)
    counted = f"{done} job(s) done, {planned.finished} finished before, {len(failures)} failed"
    lines = [counted + (f", {planned.elsewhere} under way in other sweeps" if planned.elsewhere else "")]
    lines += [f"  failed: {task.name}: {reason}" for task, reason in failures.items()]
    return "\n".join(lines)
