"""The runs of one layer, each to its record; those that share their tokens train side by side."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock
from omegaconf import OmegaConf

from sae_outliers.activations.extract import extract, store_dir, tokens_wanted
from sae_outliers.config import RunConfig
from sae_outliers.files import written_whole
from sae_outliers.job import CHECKPOINT, Job, directory_of
from sae_outliers.layer_data import LayerData
from sae_outliers.records import is_finished, write_record
from sae_outliers.tracking import start_tracker
from sae_outliers.train import train

log = logging.getLogger(__name__)


def run_layer(variants: Sequence[RunConfig], layer: int) -> list[Path]:
    """Run one layer under each config to its record, or recognise those that are finished; returns their folders.

    What is left trains side by side on one stream of batches. A job that was interrupted goes on from its checkpoint.
    Two processes never work on the same job: the second waits and then finds it finished.

    Raises:
        ValueError: the configs do not share their stream of tokens.
    """
    check_one_stream(variants)
    directories = {directory_of(cfg, layer): cfg for cfg in variants}
    with ExitStack() as locked:
        for directory in sorted(directories):  # in one order everywhere, so that no two processes wait for each other
            directory.mkdir(parents=True, exist_ok=True)
            locked.enter_context(FileLock(directory / ".lock"))
        left = {directory: cfg for directory, cfg in directories.items() if not is_finished(directory)}
        for directory in directories.keys() - left.keys():
            log.info("%s: finished before", directory)
        if left:
            run_side_by_side(left, layer)
    return list(directories)


def run_side_by_side(configs: Mapping[Path, RunConfig], layer: int) -> None:
    """Run a layer under each config, whose folder is given, to its record."""
    start = time.monotonic()
    for directory, cfg in configs.items():
        resolved = OmegaConf.to_yaml(OmegaConf.merge(cfg, {"layer": layer, "variants": []}), resolve=True)
        (directory / "config.yaml").write_text(resolved)
    first = next(iter(configs.values()))
    extract(first, [layer])
    data = LayerData(first, layer)
    jobs: list[Job] = []
    try:
        for directory, cfg in configs.items():
            jobs.append(Job(cfg, layer, directory, start_tracker(cfg, layer, directory.name), data))
            jobs[-1].prepare()
        train_all(jobs, data)
        while jobs:
            record = jobs[0].finish(len(configs), time.monotonic() - start)
            write_record(jobs[0].directory, record)
            (jobs[0].directory / CHECKPOINT).unlink(missing_ok=True)
            jobs.pop(0).tracker.finish({k: v for k, v in vars(record).items() if isinstance(v, int | float)})
    except BaseException:
        for job in jobs:
            job.tracker.finish({}, exit_code=1)
        raise


def train_all(jobs: Sequence[Job], data: LayerData) -> None:
    """Train the SAEs of all jobs that train, and write their curves."""
    stack = [job for job in jobs if job.cfg.train.steps]
    if not stack:
        return
    title = f"{data.cfg.model.name} layer {stack[0].layer}: " + ", ".join(job.condition() for job in stack)
    train([job.member() for job in stack], data.training_batches, title)
    for job in stack:
        with written_whole(job.directory / "curves.parquet") as beside:
            job.metrics.curves().to_parquet(beside, index=False)


ONE_STREAM = ("n_eval", "seed", "special_tokens", "preprocessing", "device", "train.batch_size")


def check_one_stream(variants: Sequence[RunConfig]) -> None:
    """Raises ValueError where configs that are to train side by side differ in what they read."""
    for option in ONE_STREAM:
        values = {OmegaConf.select(cfg, option) for cfg in variants}  # type: ignore[arg-type]
        if len(values) > 1:
            shown = " and ".join(sorted(map(str, values)))
            raise ValueError(f"variants must share {option}, but have {shown}: run them apart")
    if len({(store_dir(cfg), tokens_wanted(cfg)) for cfg in variants}) > 1:
        raise ValueError("variants must share model, data and train.n_tokens: run them apart")
