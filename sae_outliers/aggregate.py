"""python -m sae_outliers.aggregate (make aggregate): records -> tables, figures, a page and a summary.

    python -m sae_outliers.aggregate results_dir=results
    python -m sae_outliers.aggregate 'where="train_steps == 0 and n_eval == 20000"'
    python -m sae_outliers.aggregate 'where="`data.tokens_per_item` == 8"'
    python -m sae_outliers.aggregate results_dir=/shared/theirs/results into=mine   # a colleague's, which are only read
    python -m sae_outliers.aggregate reference=init_stats.csv expected=paper

`where` is a condition on the columns of the records: ==, !=, <, <=, >, >=, in, and, or, not, `.isna()`; any option that
determines a result may be named too, in backticks.

`reference` is a copy of the authors' published table of 454 model-layers: the same figures are computed from it and
shown next to ours. `reference_trained` is a copy of their table of trained SAEs, shown next to our recovery table.

Records of a planted γ are no natural layers: they enter the tables and figures of recovery alone.
"""

import sys

import hydra

from sae_outliers.analysis.config import AggregateConfig
from sae_outliers.paths import CONF
from sae_outliers.utils.boundary import one_sentence, visible


@hydra.main(version_base=None, config_path=str(CONF), config_name="aggregate")
def main(config: AggregateConfig) -> None:
    from sae_outliers.analysis.aggregation import aggregate  # loads pandas and matplotlib, 1 s

    try:
        print(visible(aggregate(config)))
    except ValueError as error:  # to Hydra it would be a job that failed, of which it tells first
        sys.exit(visible(str(error)))


if __name__ == "__main__":
    with one_sentence():
        main()
