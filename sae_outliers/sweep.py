"""What a sweep plans: extractions first, then one job per model, layer and condition; finished ones are skipped."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_outliers.activations.extract import store_dir, tokens_wanted
from sae_outliers.config import RunConfig, check
from sae_outliers.job import directory_of
from sae_outliers.layers import layers_of
from sae_outliers.records import is_finished


@dataclass(frozen=True)
class Task:
    """Something to launch: overrides for Hydra, what it is called, and the store of activations that it is about."""

    overrides: tuple[str, ...]
    name: str
    store: Path
    results: tuple[Path, ...] = ()  # the folders of its runs; none for an extraction

    def is_done(self) -> bool:
        """Whether a job's records are there. An extraction is done as far as anyone but its jobs can tell."""
        return all(is_finished(directory) for directory in self.results)


@dataclass(frozen=True)
class Plan:
    extractions: list[Task]
    jobs: list[Task]
    finished: int  # jobs that have a record already


def plan(composed: Iterable[tuple[Sequence[str], RunConfig, Sequence[RunConfig]]]) -> Plan:
    """From each combination of overrides, its config and its variants', to the work that is left.

    Two combinations that come to the same run give one job. Each store of activations is filled by one extraction,
    with the layers and the tokens that the jobs on it need.

    Raises:
        ValueError: a config names a layer that its model does not have, or a number that no run can use.
    """
    jobs: dict[tuple[Path, ...], tuple[Task, int, RunConfig]] = {}
    for combination, cfg, variants in composed:
        for variant in (cfg, *variants):
            check(variant)
        overrides = [override for override in combination if not override.startswith("layer=")]
        layers = layers_of(cfg.model, cfg.layer)
        for together in [[layer] for layer in layers] if cfg.store else [layers]:
            directories = tuple(directory_of(variant, layer) for layer in together for variant in variants)
            task = Task((*overrides, _layer_override(together)), _name(cfg, together), store_dir(cfg), directories)
            jobs.setdefault(directories, (task, together[0], cfg))
    open_jobs = [entry for entry in jobs.values() if not entry[0].is_done()]
    return Plan(_extractions(open_jobs), [task for task, _, _ in open_jobs], len(jobs) - len(open_jobs))


def _layer_override(layers: Sequence[int]) -> str:
    return f"layer={layers[0]}" if len(layers) == 1 else f"layer=[{','.join(map(str, layers))}]"


def _name(cfg: RunConfig, layers: Sequence[int]) -> str:
    where = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"
    side_by_side = f"{len(cfg.variants)} variants" if cfg.variants else f"centering={cfg.centering.name}"
    return f"{cfg.model.name} {where} {cfg.sae.name} {side_by_side}"


def _extractions(jobs: list[tuple[Task, int, RunConfig]]) -> list[Task]:
    by_store: dict[Path, list[tuple[Task, int, RunConfig]]] = {}
    for entry in jobs:
        if entry[2].store:  # without a store each job runs the network itself
            by_store.setdefault(entry[0].store, []).append(entry)
    return [_extraction(store, entries) for store, entries in by_store.items()]


def _extraction(store: Path, jobs: list[tuple[Task, int, RunConfig]]) -> Task:
    task, _, cfg = max(jobs, key=lambda entry: tokens_wanted(entry[2]))
    layers = sorted({layer for _, layer, _ in jobs})
    overrides = (*task.overrides[:-1], _layer_override(layers), "task=extract")
    return Task(overrides, f"{cfg.model.name} activations", store)


def summarise(planned: Plan, failures: Mapping[Task, str]) -> str:
    """The last words of a sweep: what was done, and for each failed task why."""
    done = len(planned.jobs) - len(failures)
    lines = [f"{done} job(s) done, {planned.finished} finished before, {len(failures)} failed"]
    lines += [f"  failed: {task.name}: {reason}" for task, reason in failures.items()]
    return "\n".join(lines)
