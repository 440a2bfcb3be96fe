"""Time and memory against n_features, d_model and the batch, each size in a process of its own."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache

import pandas as pd
import torch

from tests.benchmarks.fresh import DEATH, TRAINING, Job, in_fresh_process
from tests.benchmarks.plan import Plan, Size


def table(plan: Plan, device: torch.device) -> pd.DataFrame:
    """A row per task, varied quantity and value of it; the plan's own size stands in each of the series."""
    measured = cache(in_fresh_process)
    rows = []
    for task in (TRAINING, DEATH):
        for varied, size in sizes(plan):
            figures = measured(Job(task, size, size.batch, plan.large_rounds, plan.large_at_least_s, str(device)))
            rows.append({"task": task, "varied": varied, **asdict(size), **figures})
    return pd.DataFrame(rows)


def sizes(plan: Plan) -> Iterator[tuple[str, Size]]:
    for varied in ("n_features", "d_model", "batch"):
        for value in getattr(plan, varied):
            yield varied, replace(plan.size, **{varied: value})


def death_at_init(plan: Plan, device: torch.device) -> pd.DataFrame:
    """One row: death at initialisation over many tokens."""
    job = Job(DEATH, plan.size, plan.death_tokens, plan.large_rounds, plan.large_at_least_s, str(device))
    return pd.DataFrame([{"tokens": plan.death_tokens, **asdict(plan.size), **in_fresh_process(job)}])
