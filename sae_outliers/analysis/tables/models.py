"""Severity and death at initialisation by model."""

import pandas as pd

from sae_outliers.analysis.inputs import Inputs
from sae_outliers.analysis.select import measured_once
from sae_outliers.analysis.tables import table
from sae_outliers.analysis.tables.coverage import layers_of_models

NOTE = (
    "Per model: layers measured of those expected, post-LN γ over the layers, and the percentage of "
    "features dead at initialisation in the median and the worst layer, with centering off and on. "
    "Dead by TopK includes dead by ReLU."
)


@table("models", NOTE, "natural", ("gamma", "dead_pct_init_topk", "dead_pct_init_relu"), keys=("domain", "model"))
def models(inputs: Inputs) -> pd.DataFrame:
    """Return a row per model: layers, γ over them, and the median and worst layer's death at initialisation."""
    once = measured_once(inputs.natural)
    wanted = layers_of_models(inputs.natural) | inputs.expected
    rows = [_model_row(str(model), group, len(wanted[str(model)])) for model, group in once.groupby("model")]
    frame = pd.DataFrame(rows)
    return frame if frame.empty else frame.sort_values(["domain", "model"], ignore_index=True)


def _model_row(model: str, rows: pd.DataFrame, expected: int) -> dict[str, object]:
    off, on = (rows[rows["centering"] == centering] for centering in ("off", "on"))
    gamma = natural_gammas(rows)["gamma"]
    return {
        "model": model,
        "domain": rows["domain"].iloc[0],
        "layers": rows["layer"].nunique(),
        "expected": expected,
        "d_model": _span(rows["d_model"]),
        "γ min": gamma.min(),
        "γ median": gamma.median(),
        "γ max": gamma.max(),
        "TopK off median": off["dead_pct_init_topk"].median(),
        "TopK off worst": off["dead_pct_init_topk"].max(),
        "ReLU off median": off["dead_pct_init_relu"].median(),
        "ReLU off worst": off["dead_pct_init_relu"].max(),
        "TopK on median": on["dead_pct_init_topk"].median(),
        "TopK on worst": on["dead_pct_init_topk"].max(),
    }


def natural_gammas(records: pd.DataFrame) -> pd.DataFrame:
    """Return a record for each γ of each layer.

    γ is measured before centering, so it is the same in every condition but for rounding, and differs where settings
    that change the activations do.
    """
    return records[~records[["model", "layer"]].assign(gamma=records["gamma"].map("{:.5g}".format)).duplicated()]


def _span(widths: pd.Series) -> str:
    """Return one width, or the smallest and the largest where they differ from layer to layer, as in conv nets."""
    known = [f"{width:.0f}" for width in sorted(widths.dropna().unique())]
    return known[0] if len(known) == 1 else "-".join([*known[:1], *known[-1:]])
