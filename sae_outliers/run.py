"""python -m sae_outliers.run model=offline/smollm2 layer=7 sae=topk centering=off

One run: compose the config, then run its layers one after the other in this process. With `variants`, several runs of a
layer are trained jointly. With -m, sweeps/sweep.py makes one job per model, layer and condition.
"""

import logging
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from sae_outliers.config import RunConfig
from sae_outliers.paths import CONF
from sae_outliers.runs.execute import composed_variants, run

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
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
