"""A sweep from the command's overrides to its summary: plan, submit to a scheduler, wait."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.plugins import Plugins

from sae_outliers.config import RunConfig
from sae_outliers.sweeps.expand import Combinations
from sae_outliers.sweeps.manifest import Manifest, write_manifest
from sae_outliers.sweeps.plan import Plan, plan
from sae_outliers.sweeps.report import describe, summarise
from sae_outliers.sweeps.scheduler import SCHEDULERS, HydraSweep, Scheduler, automatic, in_flight
from sae_outliers.sweeps.schedulers.local import LocalScheduler
from sae_outliers.sweeps.task import Task
from sae_outliers.utils.provenance import git_commit


def run_sweep(sweep: HydraSweep, arguments: list[str], defaults: Mapping[str, Any]) -> None:
    """Run what is left of the sweep. Exits with status 1 if a job failed, after all others have run.

    `defaults` are overrides for keys that the command's `arguments` leave alone.
    """
    launcher, scheduler = scheduler_of(sweep)
    loader, defaults = sweep.hydra_context.config_loader, {"group": sweep.folder.name, **defaults}
    combinations = Combinations(loader, sweep.config, arguments, defaults)
    cfg = combinations.compose(combinations.all[0])  # options of the sweep itself are the same in all
    results_dir = Path(cfg.results_dir)
    with _exclusive(cfg):
        others = in_flight(results_dir, launcher)
        planned = plan(combinations.composed(), others.runs)
        elsewhere = f", {planned.elsewhere} under way in other sweeps" if planned.elsewhere else ""
        print(f"{len(planned.jobs)} job(s) to run, {planned.finished} finished before{elsewhere}", flush=True)
        if cfg.dry_run:
            print(describe(planned, cfg, scheduler.preview(planned, cfg)), flush=True)
            return
        manifest = Manifest(sweep.folder.name, _command(sweep, arguments), launcher, git_commit(), planned.tasks)
        failures = scheduler.submit(planned, cfg, others, partial(_write_manifest, results_dir, manifest))
    _wait_and_report(scheduler, planned, cfg, failures)


def scheduler_of(sweep: HydraSweep) -> tuple[str, Scheduler]:
    """Return the scheduler that `hydra/launcher` names, and the name by which manifests know it.

    Raises:
        ValueError: there is no scheduler of this name.
    """
    name = sweep.config.hydra.launcher.get("scheduler")
    if name is None:  # one of Hydra's launchers, such as submitit_local, which return when their jobs have ended
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=sweep.hydra_context, task_function=sweep.task_function, config=sweep.config
        )
        return "local", LocalScheduler(sweep, launcher.launch)
    name = automatic() if name == "auto" else name
    return name, SCHEDULERS[name](sweep)


def _exclusive(cfg: RunConfig) -> AbstractContextManager[Any]:
    """Keep two sweeps from planning and submitting at once: each would submit what the other is about to."""
    if cfg.dry_run:
        return nullcontext()
    folder = Path(cfg.results_dir) / "sweeps"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock")


def _command(sweep: HydraSweep, arguments: Sequence[str]) -> list[str]:
    """Return what follows `-m`, from which `make retry` runs the sweep again."""
    hydra = [override for override in sweep.config.hydra.overrides.hydra if not override.startswith("hydra.mode=")]
    return [*hydra, *arguments]


def _write_manifest(results_dir: Path, manifest: Manifest) -> None:
    if manifest.tasks:
        write_manifest(results_dir, manifest)


def _wait_and_report(scheduler: Scheduler, planned: Plan, cfg: RunConfig, failures: dict[Task, str]) -> None:
    if scheduler.detached and not cfg.wait:
        print(f"python -m sae_outliers.status results_dir={cfg.results_dir} shows how the jobs do", flush=True)
    else:
        try:
            failures |= scheduler.wait(planned)
        except KeyboardInterrupt:
            done = sum(task.is_done() for task in planned.jobs)
            print(f"interrupted with {done} of {len(planned.jobs)} job(s) done: {scheduler.after_interrupt}")
            sys.exit(130)
        print(summarise(planned, failures), flush=True)
    if failures:
        sys.exit(1)
