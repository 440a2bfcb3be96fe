"""`dry_run=true`: the plan as a table, what it takes, and the scripts that would go to sbatch."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from sae_outliers.config import RunConfig
from sae_outliers.sweeps.cost import ASSUMPTIONS
from sae_outliers.sweeps.plan import Plan
from sae_outliers.sweeps.slurm.arrays import Batch, batches_of
from sae_outliers.sweeps.slurm.profile import LEAST_MINUTES, MARGIN, STARTUP, Site, load_site
from sae_outliers.sweeps.slurm.sbatch import parameters, script


def describe(planned: Plan, cfg: RunConfig, sweep_dir: Path, with_scripts: bool) -> str:
    """Jobs by phase and model, hours, disk and memory, the assumptions, and a script of each kind.

    Raises:
        ValueError: the site's profile cannot be used, or has no GPU that is large enough.
    """
    site = load_site(cfg.site)
    batches = list(batches_of(planned, cfg.pack, site.array_size()))
    rows = sorted(_rows(batches, site), key=lambda row: (row["phase"], row["model"]))
    total = [_sum(rows, phase) for phase in ("extract", "run") if any(row["phase"] == phase for row in rows)]
    table = tabulate(rows + total, headers="keys", floatfmt=".2f")
    scripts = _scripts(batches, site, sweep_dir) if with_scripts else []
    return "\n".join([table, "", *_assumptions(site), *scripts, "dry_run=true: nothing was started"])


def _rows(batches: Sequence[Batch], site: Site) -> Iterator[dict[str, Any]]:
    """A row for each phase and model; `limit`, `GPU` and `memory` are of a task, in minutes and GB."""
    hours = "GPU-hours" if site.gpus else "hours"
    for phase, model in dict.fromkeys((batch.kind, batch.model) for batch in batches):
        these = [batch for batch in batches if (batch.kind, batch.model) == (phase, model)]
        tasks = sum(len(batch.packs) for batch in these)
        yield {
            "phase": phase,
            "model": model,
            "jobs": sum(len(batch.tasks) for batch in these),
            "tasks": tasks,
            "arrays": len(these),
            "min limit": max(site.minutes(batch.largest()) for batch in these),
            "GB GPU": max(batch.largest().gpu_gb for batch in these),
            "GB memory": max(site.memory_gb(batch.largest()) for batch in these),
            hours: (tasks * STARTUP + sum(site.seconds(batch.total()) for batch in these)) / 3600,
            "GB disk": sum(batch.total().disk for batch in these) / 1e9,
        }


def _sum(rows: Sequence[dict[str, Any]], phase: str) -> dict[str, Any]:
    """Sums of what adds up, and the most of what a task takes."""
    these = [row for row in rows if row["phase"] == phase]
    most = ("min limit", "GB GPU", "GB memory")
    figures = {
        key: (max if key in most else sum)(row[key] for row in these) for key in these[0].keys() - {"phase", "model"}
    }
    return {"phase": phase, "model": "in all"} | {key: figures[key] for key in these[0] if key in figures}


def _assumptions(site: Site) -> list[str]:
    return [
        f"site={site.name}. Estimated, not measured:",
        f"- a task: {site.speed():.3g} TFLOPS in float32, {site.read_gb_s:g} GB/s, {STARTUP:.0f} s until it computes",
        *(f"- {line}" for line in ASSUMPTIONS),
        f"- its time limit: {MARGIN:g} times that, {LEAST_MINUTES} to {site.max_minutes} minutes; one that takes more "
        "is requeued, and goes on from its checkpoint",
        "",
    ]


def _scripts(batches: Sequence[Batch], site: Site, sweep_dir: Path) -> list[str]:
    """What sbatch would be given for the first batch of each kind; job numbers are not known yet."""
    first = {batch.kind: batch for batch in reversed(batches)}
    extracted = {batch.store for batch in batches if batch.kind == "extract"}
    found = []
    for kind, batch in sorted(first.items()):
        after = "afterok:<job of its extraction>" if kind == "run" and batch.store in extracted else None
        options = parameters(batch, site, sweep_dir / "code", after)
        text = script(sweep_dir / "slurm" / batch.store.name, options, len(batch.packs))
        found += [f"--- sbatch: {batch.model} {kind} ---", text]
    return found
