"""What a sweep prints about itself: with `dry_run=true` its plan and what it takes, at its end a summary."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from sae_outliers.config import RunConfig
from sae_outliers.sweeps.cost import assumptions
from sae_outliers.sweeps.plan import Plan
from sae_outliers.sweeps.slurm.arrays import Array, arrays_of
from sae_outliers.sweeps.slurm.profile import MIN_MINUTES, STARTUP_S, TIME_MARGIN, Site, load_site
from sae_outliers.sweeps.task import Task


def describe(planned: Plan, cfg: RunConfig, preview: Sequence[str]) -> str:
    """Return jobs by phase and model, hours, disk and memory, the assumptions, and what the scheduler previews.

    Where the plan stays on this machine, this is what it would take on the site.

    Raises:
        ValueError: the site's profile cannot be used.
    """
    site = load_site(cfg.site)
    arrays = list(arrays_of(planned, cfg.pack, site.array_size()))
    rows = sorted(_rows(arrays, site), key=lambda row: (row["phase"], row["model"]))
    total = [_sum(rows, phase) for phase in ("extract", "run") if any(row["phase"] == phase for row in rows)]
    table = tabulate(rows + total, headers="keys", floatfmt=".2f")
    return "\n".join([table, "", *_assumptions(site), *preview, "dry_run=true: nothing was started"])


def _rows(arrays: Sequence[Array], site: Site) -> Iterator[dict[str, Any]]:
    """Yield a row for each phase and model; `limit`, `GPU` and `memory` are of a task, in minutes and GB."""
    hours = "GPU-hours" if site.gpus else "hours"
    for phase, model in dict.fromkeys((array.kind, array.model) for array in arrays):
        these = [array for array in arrays if (array.kind, array.model) == (phase, model)]
        tasks = sum(len(array.packs) for array in these)
        yield {
            "phase": phase,
            "model": model,
            "jobs": sum(len(array.tasks) for array in these),
            "tasks": tasks,
            "arrays": len(these),
            "min limit": max(site.minutes(array.largest()) for array in these),
            "GB GPU": max(array.largest().gpu_gb for array in these),
            "GB memory": max(site.memory_gb(array.largest()) for array in these),
            hours: (tasks * STARTUP_S + sum(site.seconds(array.total()) for array in these)) / 3600,
            "GB disk": sum(array.total().disk for array in these) / 1e9,
        }


def _sum(rows: Sequence[dict[str, Any]], phase: str) -> dict[str, Any]:
    """Return the sums of what adds up, and the maxima of what a task takes."""
    these = [row for row in rows if row["phase"] == phase]
    maxima = ("min limit", "GB GPU", "GB memory")
    figures = {
        key: (max if key in maxima else sum)(row[key] for row in these) for key in these[0].keys() - {"phase", "model"}
    }
    return {"phase": phase, "model": "in all"} | {key: figures[key] for key in these[0] if key in figures}


def _assumptions(site: Site) -> list[str]:
    return [
        f"site={site.name}. Estimated, not measured:",
        f"- a task: {site.speed():.3g} TFLOPS in float32, {site.read_gb_s:g} GB/s, {STARTUP_S:.0f} s until it computes",
        *(f"- {line}" for line in assumptions()),
        f"- its time limit: {TIME_MARGIN:g} times that, {MIN_MINUTES} to {site.max_minutes} minutes; one that takes "
        "more is requeued, and resumes from its checkpoint",
        "",
    ]


def summarise(planned: Plan, failures: Mapping[Task, str]) -> str:
    """Return the last lines of a sweep: what was done, and for each failed job why."""
    done = len(planned.jobs) - len(failures)
    counted = f"{done} job(s) done, {planned.finished} finished before, {len(failures)} failed"
    lines = [counted + (f", {planned.elsewhere} under way in other sweeps" if planned.elsewhere else "")]
    lines += [f"  failed: {task.name}: {reason}" for task, reason in failures.items()]
    return "\n".join(lines)
