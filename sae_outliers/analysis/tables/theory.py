"""Closed forms against measured death at initialisation."""

import numpy as np
import pandas as pd

from sae_outliers.analysis.inputs import Inputs
from sae_outliers.analysis.select import measured_once
from sae_outliers.analysis.tables import table
from sae_outliers.analysis.tables.spearman import overall_and_by_domain

FORMULAS = {  # closed form -> its column and the column that it predicts
    "TopK": ("theory_pct_topk", "dead_pct_init_topk"),
    "TopK, small-γ threshold": ("theory_pct_topk_small_gamma", "dead_pct_init_topk"),
    "ReLU": ("theory_pct_relu", "dead_pct_init_relu"),
}
NOTE = (
    "Closed form minus measured percentage of features dead at initialisation, centering=off: mean "
    "absolute error (MAE) and mean error (bias), in percentage points. TopK and ReLU are the paper's "
    "forms; the small-γ threshold is ours."
)
THEORY_COLUMNS = tuple(predicted for predicted, _ in FORMULAS.values())


@table("theory", NOTE, "natural", THEORY_COLUMNS, keys=("domain", "formula"))
def theory(inputs: Inputs) -> pd.DataFrame:
    """Return the mean absolute error and the bias of each closed form, centering=off."""
    records = inputs.natural
    once = measured_once(records[records["centering"] == "off"])
    rows = []
    for domain, group in overall_and_by_domain(once):
        for formula, (predicted, measured) in FORMULAS.items():
            error = (group[predicted] - group[measured]).dropna()
            mae, bias = (error.abs().mean(), error.mean()) if len(error) else (np.nan, np.nan)
            rows.append({"domain": domain, "formula": formula, "layers": len(error), "MAE": mae, "bias": bias})
    return pd.DataFrame(rows)
