"""The two kinds of death over training, by planted γ."""

from textwrap import fill

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae_outliers.analysis.conditions import conditions_among
from sae_outliers.analysis.figures import figure
from sae_outliers.analysis.figures.death_curves import MEASURES, curves_panel
from sae_outliers.analysis.figures.style import STYLE
from sae_outliers.analysis.inputs import Inputs

PANELS_ACROSS = 5  # small panels side by side
DEATH_MEASURES = ("dead_pct_relu", "dead_pct_topk")


@figure("planted_curves", "trained")
def planted_curves(inputs: Inputs) -> Figure | None:
    """Draw the TopK runs of a planted γ."""
    curves = inputs.trained.curves
    if curves.empty:
        return None
    planted = curves[(curves["sae"] == "topk") & curves["planted_gamma"].notna()]
    return draw(planted) if len(planted) else None


@mpl.rc_context(STYLE)
def draw(curves: pd.DataFrame) -> Figure:
    """Draw dead by ReLU and by TopK over training: a panel per planted γ, each source layer on rows of its own."""
    conditions = conditions_among(curves["condition"])
    sources = {
        f"{model}, layer {layer}": list(runs.groupby("planted_gamma"))
        for (model, layer), runs in curves.groupby(["model", "layer"])
    }
    most = max(map(len, sources.values()))
    across = -(-most // -(-most // PANELS_ACROSS))  # on as few rows as there must be, evenly
    rows = [
        [(source, *panel) for panel in panels[start : start + across]]
        for source, panels in sources.items()
        for start in range(0, len(panels), across)
    ]
    figure = Figure(figsize=(max(5.2, 1.7 * across + 0.6), 1.7 * len(rows) + 1.1), layout="constrained")
    grid = figure.subplots(len(rows), across, sharex=True, sharey=True, squeeze=False)
    for line, row in zip(grid, rows, strict=True):
        for axes, (source, gamma, runs) in zip(line, row, strict=False):
            by_dash = [(conditions[str(name)].dash, group) for name, group in runs.groupby("condition")]
            curves_panel(axes, by_dash, DEATH_MEASURES)
            axes.set_title(f"{fill(source, 20)}\nγ = {gamma:g}", fontsize=8)
        for axes in line[len(row) :]:
            axes.set_axis_off()
    for column in grid.T:
        [axes for axes in column if axes.axison][-1].tick_params(labelbottom=True)
    grid[0, 0].set_ylim(-3, 103)
    figure.supxlabel("training tokens", fontsize=9)
    figure.supylabel("features (%)", fontsize=9)
    figure.legend(handles=_curve_keys(curves), loc="outside upper center", ncols=6 if across > 3 else 3)
    return figure


def _curve_keys(curves: pd.DataFrame) -> list[Line2D]:
    measures = [Line2D([], [], color=c, lw=w, label=label) for label, c, w in map(MEASURES.__getitem__, DEATH_MEASURES)]
    conditions = conditions_among(curves["condition"]).values()
    return measures + [Line2D([], [], color="0.2", ls=one.dash, lw=1.4, label=one.name) for one in conditions]
