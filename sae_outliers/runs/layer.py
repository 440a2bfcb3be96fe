"""One layer of a model under one or several conditions, from stored tokens to records: the way of a run.

`run_layer` reads top to bottom: tokens and their severity, a set-up for each condition, joint training, records.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock
from omegaconf import OmegaConf

from sae_outliers.config import RunConfig, TrainConfig, options_of
from sae_outliers.results.curves import MetricsFile
from sae_outliers.results.layout import CHECKPOINT, CHECKPOINT_DIGESTS, is_finished
from sae_outliers.results.record import write_row
from sae_outliers.runs.activations import extract
from sae_outliers.runs.identity import run_directories
from sae_outliers.runs.layer_data import LayerData
from sae_outliers.runs.measure import Final, Measurements, measure_final, write_features
from sae_outliers.runs.record import Outcome, about_the_sae, record_of
from sae_outliers.runs.setup import Fates, RunSetup, set_up
from sae_outliers.sae.io import save_sae
from sae_outliers.tracking.base import Tracker, start_tracker
from sae_outliers.training.loop import TrainingRun, train
from sae_outliers.training.revival import revival_type
from sae_outliers.training.trainer import Trainer
from sae_outliers.utils.files import atomic_write, remove_leftovers

log = logging.getLogger(__name__)


def run_layer(variants: Sequence[RunConfig], layer: int) -> list[Path]:
    """Run one layer under each config to its record, or recognise those that are finished; return their folders.

    Runs on the same tokens are trained jointly, on one stream of batches. A run that was interrupted resumes from its
    checkpoint. Two processes never work on the same run: the second waits and then finds it finished.
    """
    configs = {run_directories(cfg, [layer])[0]: cfg for cfg in variants}
    with unfinished(configs) as left:
        if left:
            run_jointly({directory: configs[directory] for directory in left}, layer)
    return list(configs)


def run_jointly(configs: Mapping[Path, RunConfig], layer: int) -> None:
    """Run a layer under each config, whose folder is given, to its record."""
    start = time.monotonic()
    for directory, cfg in configs.items():
        write_config(directory, cfg, layer)
    first = next(iter(configs.values()))
    extract(first, [layer])
    data = LayerData(first, layer)
    with trackers_of(configs, layer) as trackers:
        setups = [
            set_up(cfg, layer, directory, data.severity, data.device, data.eval_tokens)
            for directory, cfg in configs.items()
        ]
        fates = Fates(setups)
        fates.count(data.eval_tokens())
        finals = train_jointly([setup for setup in setups if setup.cfg.train.steps], fates, data, trackers)
        for setup in setups:
            final = finals.get(setup.directory)
            outcome = Outcome(setup, final, time.monotonic() - start, side_by_side=len(configs))
            finish(outcome, trackers.pop(setup.directory))


def train_jointly(
    setups: Sequence[RunSetup], fates: Fates, data: LayerData, trackers: Mapping[Path, Tracker]
) -> dict[Path, Final]:
    """Train the SAEs of runs that train, and write their curves; return what is measured at the end, by folder."""
    runs, measurements = [], []
    for setup in setups:
        kind = revival_type(setup.cfg.revival)
        # a plain object: looked up in OmegaConf's, settings take a tenth of a small SAE's step
        settings: TrainConfig = OmegaConf.to_object(setup.cfg.train)  # type: ignore[assignment]
        trainer = Trainer(setup.sae, settings, kind(**options_of(setup.cfg.revival, kind)))
        metrics = MetricsFile(setup.directory / "metrics.jsonl", trackers[setup.directory].log)
        measured = Measurements(setup, data.eval_tokens, fates.evaluation_of(setup))
        run = TrainingRun(trainer, setup.to_sae_input, measured.point, metrics, setup.directory / CHECKPOINT)
        runs.append(run)
        measurements.append(measured)
    if runs:
        conditions = Counter(setup.condition for setup in setups)
        each = ", ".join(name if n == 1 else f"{n} × {name}" for name, n in conditions.items())
        title = f"{setups[0].cfg.model.name} layer {setups[0].layer}: {each}"
        train(runs, data.training_batches, title)
    finals = {}
    for setup, run, measured in zip(setups, runs, measurements, strict=True):
        with atomic_write(setup.directory / "curves.parquet") as beside:
            run.metrics.curves().to_parquet(beside, index=False)
        finals[setup.directory] = measure_final(setup, run.trainer, measured.latest, data.eval_tokens)
    return finals


def finish(outcome: Outcome, tracker: Tracker) -> None:
    """Write the run's files and close its tracker, then write its record: with it the run counts as finished."""
    setup = outcome.setup
    write_features(setup, outcome.final)
    record = record_of(outcome)
    if outcome.final:  # an untrained SAE follows from its seed
        save_sae(setup.directory / "sae.safetensors", setup.sae, setup.from_preprocessed(), about_the_sae(record))
    # before the record: a run that is killed in between is made again from its checkpoint, and told of again
    close(tracker, {name: value for name, value in vars(record).items() if isinstance(value, int | float)})
    write_row(setup.directory, asdict(record))
    for name in (CHECKPOINT, CHECKPOINT_DIGESTS):
        (setup.directory / name).unlink(missing_ok=True)
    remove_leftovers(setup.directory)


def close(tracker: Tracker, summary: dict[str, float]) -> None:
    """Close a tracker; one that fails takes no result with it."""
    try:
        tracker.finish(summary)
    except Exception as error:
        log.warning("the tracker could not be told of the end of a run: %s: %s", type(error).__name__, error)


@contextmanager
def trackers_of(configs: Mapping[Path, RunConfig], layer: int) -> Iterator[dict[Path, Tracker]]:
    """Start a tracker for each run; those still in the dict when the block fails are closed as failed."""
    trackers: dict[Path, Tracker] = {}
    try:
        for directory, cfg in configs.items():
            trackers[directory] = start_tracker(cfg, layer, directory.name)
        yield trackers
    except BaseException:
        for tracker in trackers.values():
            tracker.finish({}, exit_code=1)
        raise


@contextmanager
def unfinished(directories: Iterable[Path]) -> Iterator[list[Path]]:
    """Yield the folders of runs without a record, in the order given; no other process works on them meanwhile."""
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
    with atomic_write(directory / "config.yaml") as beside:
        beside.write_text(resolved)
