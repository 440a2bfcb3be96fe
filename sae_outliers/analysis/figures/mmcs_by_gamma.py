"""How many of the true features are found, by planted γ and condition."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from sae_outliers.analysis.figures import figure
from sae_outliers.analysis.figures.over_seeds import line_per_condition
from sae_outliers.analysis.figures.style import STYLE, gamma_axis
from sae_outliers.analysis.inputs import Inputs


@figure("mmcs_by_gamma", "trained", ("mmcs",), apart=("planted_gamma",))
def mmcs_by_gamma(inputs: Inputs) -> Figure | None:
    """Draw the TopK runs of planted γ whose true features are known."""
    runs = inputs.trained.runs
    shown = runs[(runs["sae"] == "topk") & runs["planted_gamma"].notna() & runs["mmcs"].notna()]
    return draw(shown) if shown["planted_gamma"].nunique() > 1 else None


@mpl.rc_context(STYLE)
def draw(runs: pd.DataFrame) -> Figure:
    """Draw MMCS after training against planted γ: a line per condition."""
    figure = Figure(figsize=(5.4, 3.2), layout="constrained")
    axes = figure.subplots()
    line_per_condition(axes, runs, "planted_gamma", "mmcs")
    gamma_axis(axes, runs["planted_gamma"])
    axes.set(
        xticks=sorted(runs["planted_gamma"].unique()),
        xlabel="planted γ",
        title="True features found (MMCS) after training",
    )
    figure.legend(loc="outside upper center", ncols=2)
    return figure
