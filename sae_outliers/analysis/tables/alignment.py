"""How well a feature's alignment with the mean predicts its fate."""

import pandas as pd

from sae_outliers.analysis.inputs import Inputs
from sae_outliers.analysis.tables import table

NOTE = (
    "How well the direction of a feature's encoder at initialisation predicts its fate: area under the ROC curve "
    "(AUC) of -cos(W_enc, μ) for the features dead by ReLU at init against the others, likewise for those dead by "
    "TopK, and among these for the ones still dead by TopK after training against the recovered ones. Near 1: the "
    "dead features are those that point away from μ; 0.5: alignment says nothing; blank: one side is empty. A row "
    "per run; dead: percentage of features at init; recovered: of those dead by TopK, the percentage alive after "
    "training."
)
RUN_COLUMNS = {"model": "model", "layer": "layer", "planted_gamma": "planted γ", "gamma": "γ", "condition": "condition"}


@table("alignment", NOTE, "trained")
def alignment(inputs: Inputs) -> pd.DataFrame:
    """Return a row per run that has its features on disk."""
    runs = inputs.trained.runs.dropna(subset="features")
    rows = runs[list(RUN_COLUMNS)].rename(columns=RUN_COLUMNS).to_dict("records")
    return pd.DataFrame([row | features.alignment for row, features in zip(rows, runs["features"], strict=True)])
