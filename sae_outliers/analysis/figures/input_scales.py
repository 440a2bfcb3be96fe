"""Death by ReLU at planted γ and the bias's half of the mean, where the SAE is given tokens at several scales."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from sae_outliers.analysis.conditions import CONDITIONS
from sae_outliers.analysis.figures import figure
from sae_outliers.analysis.figures.over_seeds import line_over_seeds
from sae_outliers.analysis.figures.style import STYLE, gamma_colors
from sae_outliers.analysis.inputs import Inputs

SCALES = {"none": "as they are", "sqrt_d": "norm √d_model", "unit": "mean square 1"}  # what tokens are given as
UNCENTERED, CENTERED = (CONDITIONS["none", centering, ""].name for centering in ("off", "on"))
DASHES = {UNCENTERED: "-", CENTERED: ":"}


@figure("input_scales", "trained", ("mean_in_bias",), apart=("planted_gamma", "input_scale"))
def input_scales(inputs: Inputs) -> Figure | None:
    """Draw TopK runs of planted γ, uncentered and centered, that differ in `train.input_scale`."""
    runs, curves = inputs.trained.runs, inputs.trained.curves
    if "input_scale" not in runs or curves.empty:
        return None
    shown = runs[runs["condition"].isin(DASHES) & runs["planted_gamma"].notna() & runs["input_scale"].isin(SCALES)]
    points = curves.merge(shown[["run_dir", "input_scale", "half_bias"]], on="run_dir")
    return draw(points) if points["input_scale"].nunique() > 1 else None


@mpl.rc_context(STYLE)
def draw(points: pd.DataFrame) -> Figure:
    """Draw a row for each model's layer, a column for each scale: a colour for each γ, dotted where it is centered."""
    colors = gamma_colors(points["planted_gamma"])
    scales = [scale for scale in SCALES if (points["input_scale"] == scale).any()]
    layers = list(points.groupby(["model", "layer"]))
    figure = Figure(figsize=(2.8 * len(scales), 0.6 + 2.1 * len(layers)), layout="constrained")
    grid = figure.subplots(len(layers), len(scales), sharex=True, sharey=True, squeeze=False)
    for row, ((model, layer), of_layer) in zip(grid, layers, strict=True):
        for axes, scale in zip(row, scales, strict=True):
            _panel(axes, of_layer[of_layer["input_scale"] == scale], colors)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        row[0].set_ylabel(f"{model}, layer {layer}\ndead by ReLU (%)")
    for axes, scale in zip(grid[0], scales, strict=True):
        axes.set_title(f"Tokens: {SCALES[scale]}")
    for axes in grid[-1]:
        axes.set_xlabel("training steps")
    figure.legend(handles=_keys(points, colors), loc="outside upper center", ncols=len(colors) + 3)
    return figure


def _panel(axes: Axes, points: pd.DataFrame, colors: dict[Any, Any]) -> None:
    """Draw the runs of one layer at one scale, with a dot where b_dec has come to hold half of the mean."""
    for (gamma, condition), runs in points.groupby(["planted_gamma", "condition"]):
        line_over_seeds(axes, runs["step"], runs["dead_pct_relu"], c=colors[gamma], ls=DASHES[str(condition)])
        for _, run in runs[np.isfinite(runs["half_bias"])].groupby("run_dir"):
            half = run["half_bias"].iloc[0]
            axes.plot(half, np.interp(half, run["step"], run["dead_pct_relu"]), "o", c=colors[gamma], ms=5)


def _keys(points: pd.DataFrame, colors: dict[Any, Any]) -> list[Line2D]:
    keys = [Line2D([], [], c=color, label=f"γ = {gamma:g}") for gamma, color in colors.items()]
    keys.append(Line2D([], [], c="0.2", ls="", marker="o", ms=5, label="b_dec holds half of the mean"))
    if (points["condition"] == CENTERED).any():
        keys.append(Line2D([], [], c="0.2", ls=DASHES[CENTERED], label="mean subtracted"))
    return keys
