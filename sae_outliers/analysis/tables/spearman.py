"""Spearman's ρ of outlier severity with death at initialisation."""

from collections.abc import Iterator

import pandas as pd

from sae_outliers.analysis.inputs import Inputs
from sae_outliers.analysis.select import measured_once
from sae_outliers.analysis.stats import MIN_LAYERS, MIN_MODELS, RESAMPLES, bootstrap_spearman, rank_correlation
from sae_outliers.analysis.tables import table

SEVERITIES = {"gamma": "γ post-LN", "gamma_raw": "γ raw", "effective_rank": "effective rank"}
DEATHS = {"dead_pct_init_topk": "TopK", "dead_pct_init_relu": "ReLU", "dead_pct_topk_only": "TopK minus ReLU"}
PAIRS = [(x, y) for x in SEVERITIES for y in DEATHS]
NOTE = (
    "Spearman's ρ of outlier severity with the percentage of features dead at initialisation, "
    "centering=off. Layers of one model are not independent, so there are two bootstrap 95 % intervals "
    f"(percentile, {RESAMPLES} resamples): one resamples layers and is too narrow for a statement "
    "about other models, one resamples whole models and is rough where these are few. Blank: ρ below "
    f"{MIN_LAYERS} layers or where one side is constant; the interval over models below "
    f"{MIN_MODELS} models, which give too few different resamples; an interval on whose ends all "
    "resamples agree, as they do where the order is perfect."
)
COLUMNS = ("gamma", "gamma_raw", "effective_rank", "dead_pct_init_topk", "dead_pct_init_relu")


@table("spearman", NOTE, "natural", COLUMNS, keys=("domain", "severity", "death"))
def spearman(inputs: Inputs) -> pd.DataFrame:
    """Return Spearman's ρ of severity with death at initialisation, centering=off, and bootstrap 95 % intervals."""
    records = inputs.natural
    rows = measured_once(records[records["centering"] == "off"])
    rows = rows.assign(dead_pct_topk_only=rows["dead_pct_init_topk"] - rows["dead_pct_init_relu"])
    measured = [column for column in (*SEVERITIES, *DEATHS) if rows[column].notna().any()]
    rows = rows.dropna(subset=measured)  # a column that no record has is blank; it takes no other with it
    found = [_correlations(domain, group) for domain, group in overall_and_by_domain(rows)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def overall_and_by_domain(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    if len(rows):
        yield "all", rows
        yield from ((str(domain), group) for domain, group in rows.groupby("domain"))


def _correlations(domain: str, rows: pd.DataFrame) -> pd.DataFrame:
    layer = rows["model"].astype(str) + "/" + rows["layer"].astype(str)  # all seeds of a layer go together
    by_layers = bootstrap_spearman(rows, PAIRS, layer, MIN_LAYERS)
    by_models = bootstrap_spearman(rows, PAIRS, rows["model"], MIN_MODELS)
    return pd.DataFrame(
        {
            "domain": domain,
            "severity": SEVERITIES[x],
            "death": DEATHS[y],
            "layers": layer.nunique(),
            "models": rows["model"].nunique(),
            "ρ": rank_correlation(rows[x], rows[y]),
            "ρ over layers low": by_layers[x, y][0],
            "ρ over layers high": by_layers[x, y][1],
            "ρ over models low": by_models[x, y][0],
            "ρ over models high": by_models[x, y][1],
        }
        for x, y in PAIRS
    )
