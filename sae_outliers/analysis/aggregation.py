"""From the records below a folder to tables, figures, a page and a summary."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from sae_outliers.analysis.config import AggregateConfig
from sae_outliers.analysis.inputs import Inputs, complete, layers_listed_in
from sae_outliers.analysis.make import REPORT, left_out, make_figures, make_tables, measured_columns, replaced
from sae_outliers.analysis.reference import PUBLISHED_NOTE, read_reference, read_trained_reference, reference_tables
from sae_outliers.analysis.select import Mix, check_mixed, mixed_note, select, with_settings
from sae_outliers.analysis.summary import summary
from sae_outliers.analysis.trained import read_trained
from sae_outliers.analysis.write import Table, write_figure, write_table
from sae_outliers.results.record import read_records


def aggregate(config: AggregateConfig) -> str:
    """Write the tables, the figures and the page; return the summary.

    Raises:
        ValueError: there is nothing to aggregate, or something that must not be, or no place to write it to.
    """
    into = Path(config.into or config.results_dir)
    published = read_reference(Path(config.reference)) if config.reference else None
    trained = read_trained_reference(Path(config.reference_trained)) if config.reference_trained else None
    inputs, mixed = read_inputs(config)
    tables = list(all_tables(inputs, mixed, published, trained))
    if not tables:
        raise ValueError(f"There is nothing to aggregate. Left out: {'; '.join(left_out(inputs))}")
    figures = dict(all_figures(inputs, published))
    page = None if inputs.by else into / REPORT  # its charts would pool what was told apart
    try:
        with replaced(into) as folder:
            for table in tables:
                write_table(table, folder / "tables")
            for name, figure in figures.items():
                write_figure(figure, name, folder / "figures")
            if page:
                from sae_outliers.analysis.report.page import write_report  # loads Altair, 1 s

                write_report(folder / REPORT, config, inputs, tables, published, mixed, left_out(inputs))
    except OSError as error:
        raise ValueError(
            f"The tables cannot be written to {into} ({error}): make room or name another folder by into="
        ) from error
    return summary(tables, list(figures), mixed, left_out(inputs), into, page)


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
    by = tuple(config.by)
    records = with_settings(select(complete(records, measured_columns()), config.where), by)
    mixed = check_mixed(records, config.allow_mixed, by)
    natural = records[records["planted_gamma"].isna()].reset_index(drop=True)
    return Inputs(natural, read_trained(records), expected, by), mixed


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
