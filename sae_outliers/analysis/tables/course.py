"""What a training went through between its start and its end: the peak of death, and when the bias had the mean."""

import pandas as pd

from sae_outliers.analysis.inputs import EVERY, Inputs
from sae_outliers.analysis.stats import time_to_half
from sae_outliers.analysis.tables import table
from sae_outliers.analysis.tables.trained import medians, runs_apart, shown
from sae_outliers.analysis.trained import enough_dead, since_most_dead

NEARLY_ALL = 0.95  # of the mean
GAMMA_LEFT = 1.0  # at which next to none is dead by ReLU, whatever γ was
OF_RUNS = {
    "dead_pct_init_relu": "init ReLU",
    "relu_peak": "peak ReLU",
    "steps_to_peak": "steps to peak",
    "dead_pct_final_relu": "end ReLU",
    "always_on_peak": "peak always on",
    "always_on_l0_pct_peak": "peak of their L0 %",
    "mmcs_lowest": "lowest MMCS",
    "mmcs": "end MMCS",
    "half_bias": "steps to half",
    "nearly_all_bias": "steps to 95 %",
    "mean_in_bias": "mean in bias",
    "steps_to_gamma_left": "steps to γ left 1",
    "gamma_left_half_back": "γ left with half back",
}
SPREAD = ("relu_peak", "dead_pct_final_relu", "half_bias", "gamma_left_half_back")
NOTE = (
    "Of each kind of trained SAE what its curves went through; medians over its runs, with least and most for some. "
    "ReLU: percentage of features dead by ReLU at the start, at its peak, the steps until that, and at the end. Always "
    "on: features active on more than 90 % of the tokens, and their share of L0, each at its peak. MMCS: mean max "
    "cosine similarity with the true features, at its lowest and at the end. Steps to half and to 95 %: until b_dec "
    "holds so much of the mean; blank where half of the runs did not come so far. Mean in bias: b_dec · μ/‖μ‖² at the "
    "end. γ left: ‖μ - b_dec‖/‖σ‖, the steps until it is 1, and what it is with half as many dead by ReLU as at the "
    "peak."
)


@table("course", NOTE, "trained", ("mean_in_bias",), apart=EVERY)
def course(inputs: Inputs) -> pd.DataFrame:
    """Return a row for each of the table `trained`; nothing where no run has its curves on disk."""
    runs, curves = inputs.trained
    if not {"always_on", "mean_in_bias"} <= set(curves):
        return pd.DataFrame()
    runs = runs.join(_on_the_way(curves), on="run_dir")
    left = runs["run_dir"].map(_gamma_left_with_half_back(curves)).astype(float)
    enough = enough_dead(runs["relu_peak"], runs["n_features"])
    grouped = runs_apart(runs.assign(gamma_left_half_back=left.where(enough)), inputs.by)
    return shown(medians(grouped, OF_RUNS, SPREAD), inputs.by)


def _on_the_way(curves: pd.DataFrame) -> pd.DataFrame:
    """Return a row per run, by run_dir, of what its curve reached and at which training step."""
    at_peak = {"dead_pct_relu": "relu_peak", "always_on": "always_on_peak", "always_on_l0_pct": "always_on_l0_pct_peak"}
    points = curves.reindex(columns=["run_dir", *at_peak, "mmcs"]).groupby("run_dir")
    steps_to_peak = curves["step"].loc[points["dead_pct_relu"].idxmax()].to_numpy()
    reached = {
        "nearly_all_bias": curves["mean_in_bias"] >= NEARLY_ALL,
        "steps_to_gamma_left": curves["gamma_left"] <= GAMMA_LEFT,
    }
    steps = {name: curves[there].groupby("run_dir")["step"].min() for name, there in reached.items()}
    found = points[list(at_peak)].max().rename(columns=at_peak)
    return found.assign(
        steps_to_peak=steps_to_peak,
        mmcs_lowest=points["mmcs"].min(),
        **{name: of_runs.reindex(found.index, fill_value=float("inf")) for name, of_runs in steps.items()},
    )


def _gamma_left_with_half_back(curves: pd.DataFrame) -> dict[str, float]:
    """Return by run_dir the γ that b_dec left when half of those were back that had been dead by ReLU; inf: never."""
    recovery = since_most_dead(curves).reset_index(drop=True)
    points = recovery[["gamma_left", "dead_pct_relu"]].to_numpy(float)
    runs = recovery.groupby("run_dir").indices
    return {str(run_dir): time_to_half(*points[rows].T) for run_dir, rows in runs.items()}
