"""Dead-feature recovery by planted γ."""

import pandas as pd

from sae_outliers.analysis.inputs import Inputs
from sae_outliers.analysis.tables import recovery, table
from sae_outliers.analysis.tables.theory import THEORY_COLUMNS

NOTE = (
    "Layers whose mean was rescaled, and nothing else changed, so that γ is a chosen number (planted γ). Closed "
    f"forms without centering: the paper's, and the small-γ threshold, which is ours. {recovery.NOTE}"
)
CLOSED_FORMS = {
    "theory_pct_topk": "closed form TopK",
    "theory_pct_topk_small_gamma": "closed form TopK, small-γ threshold",
    "theory_pct_relu": "closed form ReLU",
}


@table("planted", NOTE, "trained", (*recovery.DEATH_COLUMNS, *recovery.SEVERITY, *THEORY_COLUMNS))
def planted(inputs: Inputs) -> pd.DataFrame:
    """Return a row per source layer and planted γ, as in `recovery`, with dead by ReLU and the closed forms."""
    runs = inputs.trained.runs
    rows = runs[runs["planted_gamma"].notna()].rename(columns={"planted_gamma": "planted γ"})
    uncentered = rows[list(CLOSED_FORMS)].where(rows["centering"] == "off")  # centering has a γ of its own
    return recovery.conditions_across(
        rows.assign(**uncentered),
        ["model", "layer", "planted γ"],
        recovery.SEVERITY | CLOSED_FORMS,
        recovery.BY_TOPK | recovery.BY_RELU,
    )
