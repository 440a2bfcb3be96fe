"""Write the page of a sweep."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from sae_outliers.analysis.config import AggregateConfig
from sae_outliers.analysis.inputs import Inputs
from sae_outliers.analysis.report import charts, data
from sae_outliers.analysis.report.captions import counted, layers_of, measured_on
from sae_outliers.analysis.report.sections import Contents, sections
from sae_outliers.analysis.select import Mix, describe_mix
from sae_outliers.analysis.write import Table
from sae_outliers.pages import Page, html_of
from sae_outliers.utils.files import atomic_write
from sae_outliers.utils.quoting import quoted

TEMPLATES = Path(__file__).parent / "templates"
TITLE = "Activation outliers and the SAE features they kill"
READ = """from pathlib import Path
from sae_outliers import read_records

records = read_records(Path({folder!r}))
print(records[["model", "layer", "centering", "gamma", "dead_pct_init_topk"]])"""


def write_report(
    path: Path,
    config: AggregateConfig,
    inputs: Inputs,
    tables: Iterable[Table],
    published: pd.DataFrame | None = None,
    mixed: Sequence[Mix] = (),
    left_out: Sequence[str] = (),
) -> None:
    """Write the page of the inputs and of the tables that were made of them; the same records give the same bytes."""
    with atomic_write(path) as beside:
        beside.write_text(html_of(report(config, inputs, tables, published, mixed, left_out)), encoding="utf-8")


def report(
    config: AggregateConfig,
    inputs: Inputs,
    tables: Iterable[Table],
    published: pd.DataFrame | None = None,
    mixed: Sequence[Mix] = (),
    left_out: Sequence[str] = (),
) -> Page:
    by_name = {table.name: table for table in tables}
    datasets = frames(inputs, by_name, published)
    curves = data.death_curves(inputs.trained.runs, inputs.trained.curves)
    contents = Contents(inputs, by_name, datasets, published, bool(curves["sources"]), recipes(config), tuple(left_out))
    return Page(
        TITLE,
        subtitle(inputs, published),
        sections(contents),
        datasets,
        [f"Mixed, since allow_mixed=true: {describe_mix(mixed)}."] if mixed else [],
        TEMPLATES,
        "sweep.js",
        values={"curves": curves, "card": CARD},
    )


# What a layer's card says: column, title, decimals (None: text).
CARD: dict[str, list[list[Any]]] = {
    "severity": [
        ["gamma", "γ (post-LN)", 2],
        ["gamma_raw", "γ raw", 2],
        ["effective_rank", "effective rank", 1],
        ["kurtosis_median", "median excess kurtosis", 2],
        ["d_model", "d_model", 0],
        ["outlier_dims", "outlier dimensions (|μ|/σ)", None],
    ],
    "init": [
        ["centering", "centering", None],
        ["gamma_sae_input", "γ at the SAE", 2],
        ["dead_pct_init_topk", "dead by TopK (%)", 1],
        ["dead_pct_init_relu", "dead by ReLU (%)", 1],
        ["theory_pct_topk", "closed form TopK (%)", 1],
        ["theory_pct_topk_small_gamma", "small-γ threshold (%)", 1],
        ["theory_pct_relu", "closed form ReLU (%)", 1],
        ["n_eval", "tokens", 0],
        ["n_features", "features", 0],
        ["k", "k", 0],
        ["seed", "seed", 0],
    ],
    "trained": [
        ["condition", "condition", None],
        ["dead_pct_init_topk", "TopK init (%)", 1],
        ["dead_pct_final_topk", "TopK end (%)", 1],
        ["dead_pct_init_relu", "ReLU init (%)", 1],
        ["dead_pct_final_relu", "ReLU end (%)", 1],
        ["half_topk", "tokens to half", 0],
        ["fvu", "FVU", 3],
        ["l0", "L0", 1],
        ["seed", "seed", 0],
    ],
}


def frames(inputs: Inputs, tables: dict[str, Table], published: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    """Return the datasets of the page: those of which there are any rows."""
    natural, trained = inputs.natural, inputs.trained
    found: dict[str, pd.DataFrame] = {}
    if len(natural):
        found |= of_layers(natural)
    if len(trained.runs):
        found |= {"runs": data.runs(trained.runs), "bias": data.bias_curves(trained.curves)}
    if "recovery" in tables:
        found["recovery"] = data.recovery_bars(tables["recovery"].frame)
    if "planted" in tables:
        groups = data.planted_ends(tables["planted"].frame)
        found |= {f"planted_{number}": rows for number, rows in enumerate(groups)}
    if published is not None:
        found |= with_forms("published", "published_forms", data.layers(published))
    return {name: frame for name, frame in found.items() if len(frame)}


def of_layers(natural: pd.DataFrame) -> dict[str, pd.DataFrame]:
    found = with_forms("layers", "closed_forms", data.layers(natural))
    found["others"] = data.other_centerings(natural)
    if natural["gamma"].notna().any():
        depths = found["depths"] = data.depths(natural)
        if depths["model"].nunique() <= data.MOST_LABELS:
            found["depth_labels"] = data.depth_labels(depths, charts.is_wide(depths["gamma"]))
    return found


def with_forms(name: str, forms: str, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {name: rows, forms: data.closed_forms(rows)} if len(rows) else {name: rows}


def subtitle(inputs: Inputs, published: pd.DataFrame | None) -> str:
    """Return how much there is, and on what it was measured."""
    told = []
    if len(inputs.natural):
        told.append(measured_on(inputs.natural))
    if len(inputs.trained.runs):
        trained = inputs.trained.runs
        told.append(f"{counted(len(trained), 'SAE')} trained on {layers_of(trained)}.")
    if published is not None:
        told.append(f"Published: {layers_of(published)}.")
    return " ".join(told)


def recipes(config: AggregateConfig) -> dict[str, str]:
    """Return what makes this page again, and what reads its records."""
    default = AggregateConfig()
    given = {one.name: getattr(config, one.name) for one in fields(AggregateConfig)}
    words = [f"{name}={_quoted(value)}" for name, value in given.items() if value != getattr(default, name)]
    command = shlex.join(["python", "-m", "sae_outliers.aggregate", *words])
    return {"Make this page again": command, "Read its records": READ.format(folder=config.results_dir)}


def _quoted(value: Any) -> str:
    """Quote a text as Hydra's grammar reads it, where it is more than a word or a path."""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if text.replace("/", "").replace(".", "").replace("_", "").replace("-", "").isalnum() else quoted(text)
