"""Death and reconstruction over the learning rate."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from sae_outliers.analysis.figures import figure
from sae_outliers.analysis.figures.over_seeds import line_per_condition
from sae_outliers.analysis.figures.style import STYLE
from sae_outliers.analysis.inputs import Inputs

PANELS = {
    "dead_pct_final_topk": "Dead by TopK (%)",
    "dead_pct_final_relu": "Dead by ReLU (%)",
    "fvu": "FVU",
}


@figure("learning_rate", "trained", tuple(PANELS), apart=("lr",))
def learning_rate(inputs: Inputs) -> Figure | None:
    """Draw TopK runs of one layer and one γ where they were trained at several learning rates."""
    runs = inputs.trained.runs
    runs = runs[runs["sae"] == "topk"]
    one_layer = len(runs) and (runs[["model", "layer", "planted_gamma"]].drop_duplicates().shape[0] == 1)
    return draw(runs) if one_layer and runs["lr"].nunique() > 1 else None


@mpl.rc_context(STYLE)
def draw(runs: pd.DataFrame) -> Figure:
    """Draw a panel for each of PANELS at the end of training: a line per condition."""
    figure = Figure(figsize=(8.4, 3.0), layout="constrained")
    for axes, (column, title) in zip(figure.subplots(1, len(PANELS), sharex=True), PANELS.items(), strict=True):
        line_per_condition(axes, runs, "lr", column)
        axes.set(title=title, xlabel="learning rate", xscale="log")
        axes.set_ylim(bottom=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=runs["condition"].nunique())
    return figure
