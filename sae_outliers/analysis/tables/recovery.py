"""Dead-feature recovery by condition, of natural layers. Times are in training tokens."""

import numpy as np
import pandas as pd

from sae_outliers.analysis.conditions import conditions_among
from sae_outliers.analysis.inputs import Inputs
from sae_outliers.analysis.tables import table
from sae_outliers.analysis.trained import MIN_DEAD

SEVERITY = {"gamma": "γ", "effective_rank": "effective rank"}
BY_TOPK = {"dead_pct_init_topk": "init", "dead_pct_final_topk": "end", "half_topk": "tokens to half"}
BY_RELU = {"dead_pct_init_relu": "ReLU init", "dead_pct_final_relu": "ReLU end", "half_relu": "ReLU tokens to half"}
NOTE = (
    "Percentage of features dead at initialisation (init) and after training (end) under the conditions of the "
    "recovery study, and any others that were trained, all with a TopK SAE (fast b_dec: b_dec has a higher learning "
    "rate than the rest); "
    "medians over runs, where seeds make several. A column without ReLU in its "
    "name is of dead by TopK, which includes dead by ReLU. Tokens to half: training tokens until the percentage first "
    "is half of what it was at init, linear between the points of the curve; blank where that takes more than the "
    f"tokens trained (for half of the runs), or where fewer than {MIN_DEAD} features were dead at init. Columns "
    "without any figure are left out."
)
DEATH_COLUMNS = ("dead_pct_init_topk", "dead_pct_final_topk", "dead_pct_init_relu", "dead_pct_final_relu")


@table("recovery", NOTE, "trained", (*DEATH_COLUMNS, *SEVERITY))
def recovery(inputs: Inputs) -> pd.DataFrame:
    """Return a row per natural layer, the conditions next to one another."""
    runs = inputs.trained.runs
    natural = runs[runs["planted_gamma"].isna()]
    values = {**BY_TOPK, "half_relu": BY_RELU["half_relu"]}
    return conditions_across(natural, ["domain", "model", "layer"], SEVERITY, values)


def conditions_across(
    runs: pd.DataFrame, keys: list[str], once: dict[str, str], by_condition: dict[str, str]
) -> pd.DataFrame:
    """Return medians over runs: of `once` (column -> name), and of `by_condition` for each condition of a TopK SAE."""
    study_runs = runs[runs["sae"] == "topk"]
    if study_runs.empty:
        return pd.DataFrame()
    rows, by_group = study_runs.groupby(keys), study_runs.groupby([*keys, "condition"])
    frame = rows[list(once)].median().rename(columns=once)
    frame["runs"] = by_group.size().groupby(keys).max()
    frame["tokens trained"] = rows["tokens_trained"].max()
    medians = by_group[list(by_condition)].median().rename(columns=by_condition)
    for condition in conditions_among(study_runs["condition"]):
        frame = frame.join(medians.xs(condition, level="condition").add_prefix(f"{condition} "))
    return frame.dropna(axis="columns", how="all").replace(np.inf, np.nan).reset_index()


def recovery_by_model(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `recovery` with a row per model, medians over its layers; `layers` names the one, or says how many."""
    layers = frame.groupby("model")["layer"].agg(
        lambda column: f"layer {column.iloc[0]}" if len(column) == 1 else f"{len(column)} layers"
    )
    return frame.drop(columns="layer").groupby("model").median(numeric_only=True).assign(layers=layers).reset_index()
