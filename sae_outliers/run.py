"""python -m sae_outliers.run model=offline/smollm2 layer=7 sae=topk centering=off

One run: compose the config, then run its layers one after the other in this process. With `variants`, several runs of a
layer are trained jointly. With -m, sweeps/sweep.py makes one job per model, layer and condition.
"""

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from sae_outliers.config import RunConfig
from sae_outliers.paths import CONF
from sae_outliers.utils.boundary import one_sentence
from sae_outliers.utils.memory import keep_freed_memory


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: RunConfig) -> None:
    from sae_outliers.runs.execute import composed_variants, run  # loads torch, which --help does without

    variants = composed_variants(cfg, HydraConfig.get().overrides.task)
    if cfg.dry_run and HydraConfig.get().mode != RunMode.MULTIRUN:
        raise ValueError("dry_run=true plans a sweep: add -m")
    run(cfg, variants)


if __name__ == "__main__":
    keep_freed_memory()
    with one_sentence():
        main()
