"""Jobs that measure the same tokens with the same encoder, made one: at initialisation a run is mostly one product.

What only shifts the tokens (a centering, the start of b_dec, a planted mean) shares it with what does not
(`sae.shared_product`), and all of them share the reading of the tokens, or without a store the network's passes.
"""

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from omegaconf import OmegaConf

from sae_outliers.config import RunConfig, role_of, roles
from sae_outliers.runs.identity import run_settings
from sae_outliers.sweeps.cost import joint_cost, streamed_cost
from sae_outliers.sweeps.task import Task
from sae_outliers.utils.files import digest

MOST_TOGETHER = 8  # runs in a job: the weights of all are in memory
SHIFTS = ("centering.name", "init.b_dec", "data.rescale_mean")
SIZES = ("sae.n_features", "sae.k")  # all that a type's own options leave alone of a random encoder


class Job(NamedTuple):
    """A task with what it is planned from: its layers, its config without them, and the overrides that gave it.

    `product` is what `product_of` its config returns.
    """

    task: Task
    layers: list[int]
    cfg: RunConfig
    overrides: tuple[str, ...]
    product: str | None


def product_of(cfg: RunConfig) -> str | None:
    """Return what runs that share a product have in common: tokens, encoder, and where they take place.

    None where a run does more than measure one condition at initialisation.
    """
    if cfg.train.steps or cfg.variants:
        return None
    settings = {
        key: value
        for key, value in run_settings(cfg).items()
        if key not in SHIFTS and (key in SIZES or not key.startswith("sae.")) and role_of(key).affects != "training"
    }
    shared = {name: str(OmegaConf.select(cfg, name)) for name, role in roles().items() if role.shared}  # type: ignore[arg-type]
    return digest({"settings": settings, "shared": shared})


def joined(jobs: Iterable[Job]) -> Iterator[Job]:
    """Yield the jobs, those that share a product as one, in the place of the first of them."""
    together: dict[tuple[object, ...], list[Job]] = {}
    for place, job in enumerate(jobs):
        together.setdefault((job.product or place, *job.layers), []).append(job)
    for alike in together.values():
        for first in range(0, len(alike), MOST_TOGETHER):
            yield _one_of(alike[first : first + MOST_TOGETHER])


def _one_of(jobs: Sequence[Job]) -> Job:
    """Return a job that does what all of these do: one variant for each."""
    first = jobs[0]
    if len(jobs) == 1:
        return first
    common = tuple(one for one in first.overrides if all(one in job.overrides for job in jobs))
    variants = [shlex.join(one for one in job.overrides if one not in common) for job in jobs]
    configs, layers = [job.cfg for job in jobs], first.layers
    told = (*common, f"variants={json.dumps(variants, ensure_ascii=False)}", first.task.overrides[-1])
    task = replace(
        first.task,
        name=f"{first.task.name.partition(' centering=')[0]} {len(jobs)} conditions",
        overrides=told,
        results=tuple(job.task.results[i] for i in range(len(layers)) for job in jobs),
        cost=joint_cost(configs) if first.cfg.store else streamed_cost(first.cfg, len(layers), configs),
    )
    return first._replace(task=task)
