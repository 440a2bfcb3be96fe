"""Run a config to its records: called by the command line, by local processes and by SLURM tasks alike."""

import logging
from collections.abc import Sequence
from pathlib import Path

from hydra import compose

from sae_outliers.config import RunConfig, expand
from sae_outliers.results.describe import describe_run
from sae_outliers.runs.activations import extract
from sae_outliers.runs.layer import run_layer
from sae_outliers.runs.layer_spec import layers_of
from sae_outliers.runs.record import read_record
from sae_outliers.runs.smoke_test import check_model
from sae_outliers.runs.streaming import measure_in_stream
from sae_outliers.runs.validation import validate

log = logging.getLogger(__name__)


def run(cfg: RunConfig, variants: Sequence[RunConfig]) -> None:
    """Run all layers that the config names, from one forward pass, each under all variants.

    Raises:
        ValueError: a setting that no run can use, or data that end too early.
    """
    validate(cfg, variants)
    layers = layers_of(cfg.model, cfg.layer)
    if cfg.check:
        check_model(cfg, layers)
        return
    if not cfg.store:
        report(measure_in_stream(variants, layers))
        return
    extract(cfg, layers)
    if cfg.task == "extract":
        return
    for layer in layers:
        report(run_layer(variants, layer))


def report(directories: Sequence[Path]) -> None:
    for directory in directories:
        log.info("%s; %s", describe_run(vars(read_record(directory))), directory)


def composed_variants(cfg: RunConfig, overrides: Sequence[str]) -> list[RunConfig]:
    """Return the config of each of `cfg.variants`, or `cfg` itself where there are none."""
    return expand(cfg, lambda variant: compose("config", [*overrides, *variant]))  # type: ignore[arg-type, return-value]
