"""The runs of one layer, each to its record; those that share their tokens train side by side."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock
from omegaconf import OmegaConf

from sae_outliers.activations.extract import extract
from sae_outliers.config import RunConfig
from sae_outliers.results.record import is_finished, write_record
from sae_outliers.runs.job import CHECKPOINT, Job, directory_of
from sae_outliers.runs.layer_data import LayerData
from sae_outliers.tracking.base import start_tracker
from sae_outliers.training.loop import train
from sae_outliers.utils.files import atomic_write

log = logging.getLogger(__name__)


def run_layer(variants: Sequence[RunConfig], layer: int) -> list[Path]:
    """Run one layer under each config to its record, or recognise those that are finished; returns their folders.

    What is left trains side by side on one stream of batches. A job that was interrupted goes on from its checkpoint.
    Two processes never work on the same job: the second waits and then finds it finished.
    """
    configs = {directory_of(cfg, layer): cfg for cfg in variants}
    with unfinished(configs) as left:
        if left:
            run_side_by_side({directory: configs[directory] for directory in left}, layer)
    return list(configs)


@contextmanager
def unfinished(directories: Iterable[Path]) -> Iterator[list[Path]]:
    """The folders of runs that have no record yet, in the order given; no other process works on them meanwhile."""
    directories = list(directories)
    with ExitStack() as locked:
        for directory in sorted(directories):  # in one order everywhere, so that no two processes wait for each other
            directory.mkdir(parents=True, exist_ok=True)
            locked.enter_context(FileLock(directory / ".lock"))
        for directory in filter(is_finished, directories):
            log.info("%s: finished before", directory)
        yield [directory for directory in directories if not is_finished(directory)]


def write_config(directory: Path, cfg: RunConfig, layer: int) -> None:
    resolved = OmegaConf.to_yaml(OmegaConf.merge(cfg, {"layer": layer, "variants": []}), resolve=True)
    (directory / "config.yaml").write_text(resolved)


def run_side_by_side(configs: Mapping[Path, RunConfig], layer: int) -> None:
    """Run a layer under each config, whose folder is given, to its record."""
    start = time.monotonic()
    for directory, cfg in configs.items():
        write_config(directory, cfg, layer)
    first = next(iter(configs.values()))
    extract(first, [layer])
    data = LayerData(first, layer)
    jobs: list[Job] = []
    try:
        for directory, cfg in configs.items():
            jobs.append(Job(cfg, layer, directory, start_tracker(cfg, layer, directory.name), data))
            jobs[-1].prepare()
            jobs[-1].count_initial(data.eval_tokens())
        train_all(jobs, data)
        while jobs:
            finish(jobs[0], len(configs), time.monotonic() - start)
            jobs.pop(0)
    except BaseException:
        for job in jobs:
            job.tracker.finish({}, exit_code=1)
        raise


def finish(job: Job, side_by_side: int, seconds: float) -> None:
    """Write the job's record, its last file, and close its tracker."""
    record = job.finish(side_by_side, seconds)
    write_record(job.directory, record)
    (job.directory / CHECKPOINT).unlink(missing_ok=True)
    job.tracker.finish({k: v for k, v in vars(record).items() if isinstance(v, int | float)})


def train_all(jobs: Sequence[Job], data: LayerData) -> None:
    """Train the SAEs of all jobs that train, and write their curves."""
    stack = [job for job in jobs if job.cfg.train.steps]
    if not stack:
        return
    title = f"{data.cfg.model.name} layer {stack[0].layer}: " + ", ".join(job.condition() for job in stack)
    train([job.member() for job in stack], data.training_batches, title)
    for job in stack:
        with atomic_write(job.directory / "curves.parquet") as beside:
            job.metrics.curves().to_parquet(beside, index=False)
