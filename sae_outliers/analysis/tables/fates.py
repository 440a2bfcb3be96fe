"""Fates of features before and after training."""

import numpy as np
import pandas as pd

from sae_outliers.analysis.inputs import Inputs
from sae_outliers.analysis.tables import table
from sae_outliers.results.features import Fate

FATES = {Fate.ALIVE: "alive", Fate.NEVER_SELECTED: "never selected", Fate.NEVER_POSITIVE: "never positive"}
NOTE = (
    "What became of the features of each fate at initialisation: the percentage of them that is alive, never "
    "selected (positive on some evaluation token, but never among the k largest) or never positive (dead by ReLU) "
    "after training; a row adds up to 100. Fates that no feature had are left out; the features of several seeds "
    "are counted together."
)


@table("fates", NOTE, "trained")
def fates(inputs: Inputs) -> pd.DataFrame:
    """Return fate at initialisation by fate at the end, in percent of the features of the first, by condition."""
    rows = []
    groups = inputs.trained.runs.groupby(["model", "layer", "planted_gamma", "condition"], dropna=False, sort=False)
    for (model, layer, gamma, condition), group in groups["features"]:
        counts = sum(features.fates for features in group if features is not None)
        if not np.any(counts):
            continue
        for before, row in zip(FATES.values(), counts, strict=True):
            if row.sum():
                at_end = {f"{after} at end": 100 * n / row.sum() for after, n in zip(FATES.values(), row, strict=True)}
                key = {"model": model, "layer": layer, "planted γ": gamma, "condition": condition}
                rows.append(key | {"at init": before, "features": int(row.sum())} | at_end)
    return pd.DataFrame(rows)
