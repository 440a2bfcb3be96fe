"""python -m sae_outliers.aggregate (make aggregate): records -> tables, figures and a summary.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
import pandas as pd
from hydra.core.config_store import ConfigStore
from matplotlib.figure import Figure

from sae_outliers.analysis.inputs import Inputs, complete, layers_listed_in
from sae_outliers.analysis.make import left_out, make_figures, make_tables, measured_columns, replaced
from sae_outliers.analysis.reference import PUBLISHED_NOTE, read_reference, read_trained_reference, reference_tables
from sae_outliers.analysis.select import Mix, check_mixed, mixed_note, select
from sae_outliers.analysis.summary import summary
from sae_outliers.analysis.trained import read_trained
from sae_outliers.analysis.write import Table, write_figure, write_table
from sae_outliers.paths import CONF
from sae_outliers.results.record import read_records
from sae_outliers.utils.boundary import one_sentence


@dataclass
class AggregateConfig:
    results_dir: str = "results"
    into: str | None = None  # the folder for tables/ and figures/; null: results_dir
    where: str | None = None  # aggregate only the records for which this condition on their columns holds
    allow_mixed: bool = False  # put records with different settings into one table
    # whose layers are expected besides those of the models seen: `paper`, or a folder of model configs
    expected: str | None = None
    reference: str | None = None  # CSV file with the columns of the authors' published table
    reference_trained: str | None = None  # CSV file with the columns of their table of trained SAEs


ConfigStore.instance().store(name="aggregate_schema", node=AggregateConfig)


@hydra.main(version_base=None, config_path=str(CONF), config_name="aggregate")
def main(config: AggregateConfig) -> None:
    into = Path(config.into or config.results_dir)
    try:
        published = read_reference(Path(config.reference)) if config.reference else None
        trained = read_trained_reference(Path(config.reference_trained)) if config.reference_trained else None
        inputs, mixed = read_inputs(config)
        tables = list(all_tables(inputs, mixed, published, trained))
        if not tables:
            raise ValueError(f"There is nothing to aggregate. Left out: {'; '.join(left_out(inputs))}")
    except ValueError as error:  # to Hydra it would be a job that failed, of which it tells first
        sys.exit(str(error))
    figures = dict(all_figures(inputs, published))
    try:
        with replaced(into) as folder:
            for table in tables:
                write_table(table, folder / "tables")
            for name, figure in figures.items():
                write_figure(figure, name, folder / "figures")
    except OSError as error:
        sys.exit(f"The tables cannot be written to {into} ({error}): make room or name another folder by into=")
    print(summary(tables, list(figures), mixed, left_out(inputs), into))


def read_inputs(config: AggregateConfig) -> tuple[Inputs, list[Mix]]:
    """Read what tables are made of, and the settings that are mixed in it.

    Raises:
        ValueError: there is nothing to aggregate, or something that must not be; the message is one sentence.
    """
    expected = layers_listed_in(Path(config.expected)) if config.expected else {}
    records = read_records(Path(config.results_dir))
    if records.empty:
        if not (config.reference or config.reference_trained):
            raise ValueError(f"There are no records below {config.results_dir}/runs: run something first")
        return Inputs(expected=expected), []
    records = select(complete(records, measured_columns()), config.where)
    mixed = check_mixed(records, config.allow_mixed)
    natural = records[records["planted_gamma"].isna()].reset_index(drop=True)
    return Inputs(natural, read_trained(records), expected), mixed


def all_tables(
    inputs: Inputs,
    mixed: Sequence[Mix] = (),
    published: pd.DataFrame | None = None,
    published_trained: pd.DataFrame | None = None,
) -> Iterator[Table]:
    """Make the tables of the records, then those that the authors published next to ours."""
    for table in make_tables(inputs):
        yield table._replace(note=table.note + mixed_note(mixed))
    for table in reference_tables(inputs, published, published_trained):
        yield table._replace(note=table.note + PUBLISHED_NOTE + mixed_note(mixed))


def all_figures(inputs: Inputs, published: pd.DataFrame | None = None) -> Iterator[tuple[str, Figure]]:
    yield from make_figures(inputs)
    if published is not None:
        yield from ((f"reference_{name}", figure) for name, figure in make_figures(Inputs(published)))


if __name__ == "__main__":
    with one_sentence():
        main()
