"""python -m sae_outliers.run model=offline/smollm2 layer=7 sae=topk centering=off

One run: compose the config, then one job per layer in this process. With `variants`, several runs of a layer train side
by side. With -m, the sweeper in launch/ makes one job per model, layer and condition.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from sae_outliers.activations.extract import extract
from sae_outliers.check import check_model
from sae_outliers.config import RunConfig, expand, register
from sae_outliers.in_stream import measure_in_stream
from sae_outliers.layers import layers_of
from sae_outliers.records import describe, read_record
from sae_outliers.side_by_side import run_layer
from sae_outliers.validation import validate

log = logging.getLogger(__name__)


def run(cfg: RunConfig, variants: Sequence[RunConfig]) -> None:
    """All layers that the config names, from one forward pass, each under all variants."""
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
        log.info("%s; %s", describe(read_record(directory)), directory)


def composed_variants(cfg: RunConfig, overrides: Sequence[str]) -> list[RunConfig]:
    """The config of each of `cfg.variants`, or `cfg` itself where there are none."""
    return expand(cfg, lambda variant: compose("config", [*overrides, *variant]))  # type: ignore[arg-type, return-value]


register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(cfg: RunConfig) -> None:
    variants = composed_variants(cfg, HydraConfig.get().overrides.task)
    if HydraConfig.get().mode == RunMode.MULTIRUN:  # the sweep reports what a job raises
        return run(cfg, variants)
    try:
        if cfg.dry_run:
            raise ValueError("dry_run=true plans a sweep: add -m")
        run(cfg, variants)
    except OmegaConfBaseException as error:
        log.error("%s", str(error).splitlines()[0])  # what follows is about OmegaConf's own types
        sys.exit(1)
    except (ValueError, OSError, ImportError) as error:  # OSError: transformers, of what the hub does not have
        log.error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
