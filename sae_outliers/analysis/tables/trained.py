"""What came of every trained SAE: a row for each setting that tells runs apart, medians over seeds."""

import numpy as np
import pandas as pd
from pandas.api.typing import DataFrameGroupBy

from sae_outliers.analysis.conditions import conditions_among
from sae_outliers.analysis.inputs import EVERY, Inputs
from sae_outliers.analysis.tables import table

AT_INIT = {"gamma": "γ", "dead_pct_init_topk": "init TopK", "dead_pct_init_relu": "init ReLU"}
AT_END = {
    "dead_pct_final_topk": "end TopK",
    "dead_pct_final_relu": "end ReLU",
    "collateral_dead": "collateral",
    "fvu": "FVU",
    "mmcs": "MMCS",
    "always_on": "always on",
    "always_on_l0_pct": "their L0 %",
    "mean_in_bias": "mean in bias",
    "half_bias": "steps to half",
}
SPREAD = ("dead_pct_final_topk", "dead_pct_final_relu", "fvu", "mmcs")
TOLD_APART = ("model", "layer", "planted_gamma", "sae", "revival", "centering", "freeze_b_dec")  # by the keys
NOTE = (
    "Of each kind of trained SAE the median over its runs, which differ in seeds (and, where allow_mixed=true, in what "
    "is said below), with least and most for some. TopK, ReLU: percentage of features dead. Collateral: features that "
    "were alive at initialisation and are never positive at the end. MMCS: mean max cosine similarity with the true "
    "features, where they are known. Always on: features active on more than 90 % of the tokens, and their share of "
    "L0. Mean in bias: b_dec · μ/‖μ‖² at the end. Steps to half: until it is 0.5; blank where b_dec began with some of "
    "the mean, or half of the runs did not come so far."
)


@table("trained", NOTE, "trained", tuple(name for name in (*AT_INIT, *AT_END) if name != "half_bias"), apart=EVERY)
def trained(inputs: Inputs) -> pd.DataFrame:
    """Return a row per model, layer, planted γ, condition and value of the settings `by` which runs are told apart."""
    grouped = runs_apart(inputs.trained.runs, inputs.by)
    frame = medians(grouped, AT_INIT | AT_END, SPREAD)
    frame["steps"] = grouped["train_steps"].max()
    return shown(frame, inputs.by)


def runs_apart(runs: pd.DataFrame, by: tuple[str, ...]) -> DataFrameGroupBy:
    """Return trained runs grouped by all that tells them apart but seeds, the settings `by` among it."""
    runs = runs.rename(columns={"planted_gamma": "planted γ"})
    keys = ["model", "layer", "planted γ", *_other_settings(by), "condition"]
    places = {name: place for place, name in enumerate(conditions_among(runs["condition"]))}
    ordered = runs.sort_values(keys, key=lambda column: column.map(places) if column.name == "condition" else column)
    return ordered.groupby(keys, dropna=False, sort=False)


def medians(grouped: DataFrameGroupBy, names: dict[str, str], spread: tuple[str, ...]) -> pd.DataFrame:
    """Return how many runs each group has, and the median of each column, by its name; of `spread` also the range."""
    frame = grouped.size().rename("runs").to_frame()
    for column, name in names.items():
        frame[name] = grouped[column].median()
        if column in spread and frame["runs"].max() > 1:
            frame[f"{name} least"], frame[f"{name} most"] = grouped[column].min(), grouped[column].max()
    return frame


def shown(frame: pd.DataFrame, by: tuple[str, ...]) -> pd.DataFrame:
    """Return a frame with a row for each of `runs_apart` as a table, without columns that have no figure."""
    frame = frame.replace(np.inf, np.nan).dropna(axis="columns", how="all").reset_index()
    settings = frame[_other_settings(by)].astype(object)  # shown as they were set, not rounded as figures are
    return frame.assign(**settings).dropna(axis="columns", how="all")


def _other_settings(by: tuple[str, ...]) -> list[str]:
    return [name for name in by if name not in TOLD_APART]
